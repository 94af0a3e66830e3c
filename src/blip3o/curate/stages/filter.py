"""Drops drafts by their text, and rejects images, whose scores are out of bounds."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError, unknown_name
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft
from blip3o.curate.image_scores import EDIT_SCORES, IMAGE_SCORES, image_scores
from blip3o.curate.score_files import FileScores, fingerprint_of, read_scores
from blip3o.curate.words import MARKS, tokens
from blip3o.imaging.load import open_image

TEXT_SCORES = ("words", "characters")


def text_scores(text: str) -> dict[str, float]:
    """Returns the scores of a text by name: the numbers of words and of characters, at least 0.

    A text in a language without spaces has no words but its clauses; count its characters.
    """
    words = [token for token in tokens(text) if token not in MARKS]
    return {"words": float(len(words)), "characters": float(len(text.strip()))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterStage:
    """Judges the text of each draft, and its image if it has one.

    A draft whose text fails is dropped. An image that fails, or that cannot be decoded, is
    rejected, so a later stage may draw another one.

    The scores are those of `image_scores` and `text_scores`, and the columns of `score_files`. A
    row that names a draft judges its text, one that names an image judges that image. A draft or an
    image fails if no row has its score.

    Args:
        least: least value of scores, by name.
        most: largest value of scores, by name.
        score_files: JSON-lines and Parquet files of other tools, or patterns of them; see
            `blip3o.curate.score_files`.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = False

    kind: str = "filter"
    name: str = ""
    least: dict[str, float] = dataclasses.field(default_factory=dict)
    most: dict[str, float] = dataclasses.field(default_factory=dict)
    score_files: tuple[LocalPath, ...] = ()

    def __post_init__(self) -> None:
        """Checks the names of the scores.

        Raises:
            UsageError: if a score is unknown; with score files, it is checked when they are read.
        """
        if not self.score_files:
            self._check_names(FileScores({}, {}))

    def fingerprint(self) -> str:
        """Returns a hash of the score files; empty without them.

        Raises:
            UsageError: if one cannot be read.
        """
        return fingerprint_of(self.score_files)

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts after the stage.

        Args:
            drafts: drafts of one unit.
            desk: the images.

        Raises:
            UsageError: if a score file cannot be read, or a score is unknown.
        """
        files = read_scores(self.score_files, self.fingerprint())
        self._check_names(files)
        return [draft if draft.dropped else self._judged(draft, desk, files) for draft in drafts]

    def _check_names(self, files: FileScores) -> None:
        known = {*TEXT_SCORES, *IMAGE_SCORES, *EDIT_SCORES, *files.of_drafts, *files.of_images}
        for name in (*self.least, *self.most):
            if name not in known:
                error = unknown_name("score", name, known)
                raise UsageError(f"{error}; all scores: {', '.join(sorted(known))}")

    def _judged(self, draft: Draft, desk: Desk, files: FileScores) -> Draft:
        scores = {**text_scores(draft.prompt), **files.drafts.get(draft.name, {})}
        draft = draft.with_scores(scores)
        if reason := "; ".join(self._faults(scores, {*TEXT_SCORES, *files.of_drafts})):
            return draft.drop(desk.stage, reason)
        if not draft.image:
            return draft
        data = desk.images.read(draft.image)
        try:
            image = open_image(data)
        except UsageError as error:
            return draft.reject_image(desk.stage, str(error))
        source = desk.images.open(draft.source) if draft.source else None
        scores = {**image_scores(image, source), **files.images.get(draft.image, {})}
        if reason := "; ".join(self._faults(scores, scores.keys() | files.of_images)):
            return draft.reject_image(desk.stage, reason, scores)
        return draft.with_scores(scores)

    def _faults(self, scores: Mapping[str, float], names: Iterable[str]) -> Iterator[str]:
        """Yields the reasons why scores fail.

        Args:
            scores: scores by name.
            names: the scores that must be there, if they have a limit.
        """
        for name in sorted(names):
            if name not in self.least and name not in self.most:
                continue
            if name not in scores:
                yield f"the score files have no {name} of it"
            elif name in self.least and scores[name] < self.least[name]:
                yield f"{name} {scores[name]:.4g} is below {self.least[name]:g}"
            elif name in self.most and scores[name] > self.most[name]:
                yield f"{name} {scores[name]:.4g} is above {self.most[name]:g}"
