"""A draft: a record of an instruction set in the making, with its whole history."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import write_atomic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One answer of a model, or one decision, that shaped a draft.

    Args:
        stage: name of the stage.
        model: model and revision that answered; empty if no model was asked.
        license: licence or terms of the answer; empty if no model was asked.
        request: key of the request, under which the folder of a run keeps the answer; empty for
            models that run in the process.
        seed: seed of the noise of an image; None for other answers.
        text: the answer or the decision, in words.
    """

    stage: str
    model: str = ""
    license: str = ""
    request: str = ""
    seed: int | None = None
    text: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that a stage has rejected.

    Args:
        image: sha256 of its file.
        prompt: the prompt or instruction that it was made for.
        stage: name of the stage that rejected it.
        reason: the reason, in words.
        scores: its scores.
    """

    image: str
    prompt: str
    stage: str
    reason: str
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A record in the making. Stages return changed copies; no stage removes a draft.

    Args:
        slot: number of the draft in the plan, from 0; it is its name.
        category: category of the plan.
        rank: number of the draft within its category, from 0.
        prompt: the text that the finished record teaches: the prompt of an image, or the
            instruction of an edit.
        source_prompt: prompt of the image that the instruction edits.
        source: sha256 of the file of that image; empty for a record without one.
        image: sha256 of the image file under consideration; empty if there is none (yet).
        is_accepted: whether a judge has accepted the image. Without a judge, every image counts.
        scores: scores of the texts and of the current image, by name.
        facts: what the image must show, as JSON, for judges that compute instead of asking.
        failures: the rejected images, in their order.
        dropped: the reason why the draft does not become a record; empty if it may.
        dropped_by: name of the stage that dropped it.
        steps: its history.
    """

    slot: int
    category: str
    rank: int = 0
    prompt: str = ""
    source_prompt: str = ""
    source: str = ""
    image: str = ""
    is_accepted: bool = False
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    dropped: str = ""
    dropped_by: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def name(self) -> str:
        """Name of the draft in files: its slot with leading zeros."""
        return f"{self.slot:08d}"

    @property
    def is_finished(self) -> bool:
        """Whether the draft is a record as it stands: it has an image and was not dropped."""
        return not self.dropped and bool(self.image)

    def drop(self, stage: str, reason: str) -> "Draft":
        """Returns the draft, left out of the finished set for a reason."""
        return dataclasses.replace(self, dropped=reason, dropped_by=stage)

    def reject_image(
        self, stage: str, reason: str, scores: Mapping[str, float] | None = None
    ) -> "Draft":
        """Returns the draft without its image, which joins the failures.

        Args:
            stage: name of the stage that rejects the image.
            reason: the reason, in words.
            scores: scores of the image besides those that the draft has.
        """
        failure = Failure(
            image=self.image,
            prompt=self.prompt,
            stage=stage,
            reason=reason,
            scores={**self.scores, **(scores or {})},
        )
        return dataclasses.replace(
            self, image="", is_accepted=False, scores={}, failures=(*self.failures, failure)
        )

    def with_scores(self, scores: Mapping[str, float]) -> "Draft":
        """Returns the draft with further scores."""
        return dataclasses.replace(self, scores={**self.scores, **scores})

    def noted(self, step: Step) -> "Draft":
        """Returns the draft with a further step in its history."""
        return dataclasses.replace(self, steps=(*self.steps, step))


def write_drafts(file: Path, drafts: Iterable[Draft]) -> None:
    """Writes drafts as JSON lines, a complete file or none; several processes may do so at once."""
    lines = [json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n" for one in drafts]
    write_atomic(file, "".join(lines), is_shared=True)


def read_drafts(file: Path) -> list[Draft]:
    """Returns the drafts of a file of `write_drafts`.

    Raises:
        UsageError: if the file cannot be read.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            return [_draft(json.loads(line)) for line in lines]
    except OSError as error:
        raise UsageError(f"cannot read {file}: {reason_of(error)}") from error
    except (ValueError, TypeError, LookupError) as error:
        raise UsageError(f"{file} is damaged: remove it, and run the same command again") from error


def _draft(data: Mapping[str, Any]) -> Draft:
    fields = dict(data)
    fields["failures"] = tuple(Failure(**one) for one in data["failures"])
    fields["steps"] = tuple(Step(**one) for one in data["steps"])
    return Draft(**fields)


def open_drafts(drafts: Sequence[Draft]) -> list[Draft]:
    """Returns the drafts that may still become records."""
    return [one for one in drafts if not one.dropped]


def concerns(draft: Draft, categories: Sequence[str]) -> bool:
    """Returns whether a stage works on a draft that may still become a record.

    Args:
        draft: the draft.
        categories: categories that the stage works on; empty for all.
    """
    return not draft.dropped and (not categories or draft.category in categories)
