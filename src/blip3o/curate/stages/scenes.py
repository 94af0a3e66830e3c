"""Drafts of the procedural scenes, and the exact judgement of their images, without any model."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from PIL import Image

from blip3o.core.bounds import Count, Share
from blip3o.core.errors import UsageError
from blip3o.core.types import ImageRequest
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, Step, concerns
from blip3o.data.scenes.captions import caption_texts, detailed_caption
from blip3o.data.scenes.edits import Edit, sample_edit
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.scenes.types import Placed, Scene
from blip3o.data.scenes.words import pick
from blip3o.eval.scene_detector import VERSION as DETECTOR_VERSION
from blip3o.eval.scene_detector import detect
from blip3o.eval.scene_rules import SceneDetection
from blip3o.eval.tuning.scenes import score_scene, wanted_by

_SCORE = "scene"
_SPLIT = "train"
"""Scenes without the compositions that the benchmark `scenes` holds out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesStage:
    """Writes prompts of scenes, or source images of scenes with instructions to edit them.

    Args:
        name: name of the stage in its run.
        task: "text_to_image" for prompts, "edit" for source images and instructions.
        image_px: side of the source images.
        categories: categories of the drafts to fill; empty for all.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = False

    kind: str = "scenes"
    name: str = ""
    task: Literal["text_to_image", "edit"] = "text_to_image"
    image_px: Count = 96
    categories: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Returns an empty text; see `StageConfig`."""
        return ""

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts with texts, facts and source images; see `StageConfig`."""
        fill = self._prompted if self.task == "text_to_image" else self._instructed
        return [fill(one, desk) if concerns(one, self.categories) else one for one in drafts]

    def _prompted(self, draft: Draft, desk: Desk) -> Draft:
        scene, rng = sample_scene(desk.seed, draft.slot, _SPLIT), desk.rng(draft)
        return _noted(draft, desk, prompt=pick(rng, caption_texts(scene, rng)), facts=_plain(scene))

    def _instructed(self, draft: Draft, desk: Desk) -> Draft:
        edit = sample_edit(desk.seed, draft.slot, _SPLIT, wording="train")
        file = io.BytesIO()
        render(edit.source, self.image_px).save(file, "PNG")
        return _noted(
            draft,
            desk,
            prompt=edit.instruction,
            source_prompt=detailed_caption(edit.source),
            source=desk.images.add(file.getvalue()),
            facts={"kind": edit.kind, "source": _plain(edit.source), "target": _plain(edit.target)},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneCheckStage:
    """Accepts or rejects images of scenes by the exact detector; the score is "scene".

    The score of a prompt is that of the reward `scenes`, in [0, 1], with credit for parts. That of
    an edit is 1 if the image shows exactly the wanted scene, else 0. Images that were accepted
    before are not judged again.

    Args:
        name: name of the stage in its run.
        least: lowest score of an accepted image.
        categories: categories of the drafts to judge; empty for all.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = False

    kind: str = "scene_check"
    name: str = ""
    least: Share = 1.0
    categories: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Returns the version of the detector; see `StageConfig`."""
        return f"scene-detector-{DETECTOR_VERSION}"

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts, their images accepted or rejected; see `StageConfig`."""
        return [
            self._judged(one, desk)
            if concerns(one, self.categories) and one.image and not one.is_accepted
            else one
            for one in drafts
        ]

    def _judged(self, draft: Draft, desk: Desk) -> Draft:
        image = desk.images.open(draft.image)
        if image.width != image.height:
            reason = f"a scene is square, but the image is {image.width}x{image.height}"
            return draft.reject_image(desk.stage, reason, {_SCORE: 0.0})
        score, shown = _score(draft, image)
        text = f"score {score:.2f}; the image shows {shown}"
        noted = draft.noted(Step(stage=desk.stage, text=text))
        if score < self.least:
            return noted.reject_image(desk.stage, text, {_SCORE: score})
        return dataclasses.replace(noted.with_scores({_SCORE: score}), is_accepted=True)


def _score(draft: Draft, image: Image.Image) -> tuple[float, str]:
    """Returns the score of an image, and what it shows.

    Raises:
        UsageError: if the draft has no facts of a scene.
    """
    found, facts = detect(image), draft.facts
    shown = ", ".join(_name(one) for one in found) or "nothing"
    if "objects" in facts:
        wanted = wanted_by(ImageRequest(prompt=draft.prompt, fields=facts))
        return score_scene(found, wanted), shown
    if "target" not in facts:
        raise UsageError(
            f"draft {draft.slot} has no facts of a scene; the stage scenes writes such drafts"
        )
    edit = Edit(
        kind=facts["kind"],
        source=_scene(facts["source"]),
        target=_scene(facts["target"]),
        instruction=draft.prompt,
    )
    places = [(one.thing, one.color, one.x, one.y) for one in found]
    return float(edit.accepts(places)), shown


def _name(one: SceneDetection) -> str:
    return one.thing if one.thing == one.color else f"{one.color} {one.thing}"


def _noted(draft: Draft, desk: Desk, **texts: Any) -> Draft:  # noqa: ANN401 - fields of a draft
    filled = dataclasses.replace(draft, **texts)
    return filled.noted(Step(stage=desk.stage, text=f"scene {draft.slot} of the seed {desk.seed}"))


def _plain(scene: Scene) -> dict[str, Any]:
    """Returns a scene as JSON; `_scene` is the way back."""
    objects = [dataclasses.asdict(one) for one in scene.objects]
    return {"background": scene.background, "objects": objects}


def _scene(data: Mapping[str, Any]) -> Scene:
    objects = tuple(Placed(**one) for one in data["objects"])
    return Scene(background=data["background"], objects=objects)
