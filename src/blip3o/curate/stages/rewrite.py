"""Repairs records whose images fail: the prompt is written anew from the image that came out."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from blip3o.core.bounds import Count
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, Step
from blip3o.curate.examples import EXAMPLE_TEXT, example_image
from blip3o.curate.models import Request
from blip3o.remote.chat import ChatImage, ChatRequest

_LINES = {
    False: "Write a prompt that this image follows in every detail: one or two plain sentences "
    "that name the things, their numbers, colors, places and actions.",
    True: "The second image was made from the first. Write the instruction that leads from the "
    "first to the second: one or two plain sentences that name every difference.",
}
_END = "Write nothing but the {what}. An earlier {what}, which the image does not follow, was:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewriteStage:
    """Takes up the best rejected image of each draft without an image, with a new text.

    A judge after this stage decides whether the image follows the new text. The earlier text stays
    in the history. The best image is the one with the highest mean of its scores, the later one of
    equals.

    Args:
        name: name of the stage; empty for the kind.
        model: name of the model; it must see images.
        max_tokens: longest answer.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = False
    kind: str = "rewrite"
    name: str = ""
    model: str
    max_tokens: Count = 200

    def fingerprint(self) -> str:
        """Returns an empty text: the stage reads no files."""
        return ""

    def examples(self) -> list[Request]:
        """Returns the request of one draft; see `AskingStage`."""
        return [self._request(EXAMPLE_TEXT, [example_image()], is_edit=False)]

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts, some with a new text and an earlier image; see `StageConfig`."""
        model = desk.model(self.model)
        places = [n for n, one in enumerate(drafts) if _is_failed(one)]
        requests = [
            self._request(one.prompt, _seen(one, desk), is_edit=bool(one.source))
            for one in (drafts[place] for place in places)
        ]
        result = list(drafts)
        replies = model.replies(requests, desk.stage)
        for place, reply in zip(places, replies, strict=True):
            text = " ".join(reply.text.split()).strip("\"'")
            draft = drafts[place].noted(
                Step(
                    stage=desk.stage,
                    model=reply.model,
                    license=model.license,
                    request=reply.request,
                    text=f"{reply.outcome}: {text}; earlier: {drafts[place].prompt}",
                )
            )
            if reply.outcome == "answered" and text:
                best = _best(draft)
                image = draft.failures[best].image
                draft = dataclasses.replace(draft, prompt=text, image=image)
            result[place] = draft
        return result

    def _request(self, prompt: str, images: Sequence[ChatImage], *, is_edit: bool) -> ChatRequest:
        what = "instruction" if is_edit else "prompt"
        text = f"{_LINES[is_edit]} {_END.format(what=what)}\n{prompt}"
        return ChatRequest(parts=(*images, text), max_tokens=self.max_tokens)


def _seen(draft: Draft, desk: Desk) -> list[ChatImage]:
    image = draft.failures[_best(draft)].image
    return [desk.shown(one) for one in (draft.source, image) if one]


def _is_failed(draft: Draft) -> bool:
    return not draft.dropped and not draft.image and bool(draft.failures)


def _best(draft: Draft) -> int:
    """Returns the number of the failure with the highest mean score, the later one of equals."""

    def worth(number: int) -> tuple[float, int]:
        scores = draft.failures[number].scores.values()
        return (sum(scores) / len(scores) if scores else 0.0, number)

    return max(range(len(draft.failures)), key=worth)
