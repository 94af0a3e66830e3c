"""Drops drafts that repeat the text or the image of another one."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

from blip3o.core.bounds import Bounds, Count
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, open_drafts
from blip3o.curate.near import MOST_BITS, Mark, NearImages, NearTexts, word_runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupStage:
    """Keeps the first of the drafts that repeat each other.

    A draft is compared with the kept drafts of lower slots, so each dropped one has a near
    duplicate in the set. An edit repeats another one's text only if the prompts of their source
    images, or the images themselves, are alike as well. Edits of one source image may look alike.

    Args:
        text: least overlap of texts that repeat each other: the number of word runs in both, by
            the number in any. None compares no texts.
        run_words: number of words in a run.
        image: most bits of 256 in which the perceptual hashes of images differ that repeat each
            other. Recompression changes up to 10, unrelated images differ in about 128. None
            compares no images.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = True

    kind: str = "dedup"
    name: str = ""
    text: Annotated[float, Bounds(0, 1, is_open=True)] | None = 0.7
    run_words: Count = 2
    image: Annotated[int, Bounds(0, MOST_BITS)] | None = 24

    def fingerprint(self) -> str:
        """Returns an empty text: the stage reads no files."""
        return ""

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts after the stage.

        Args:
            drafts: all drafts of the run.
            desk: the images.

        Raises:
            UsageError: if a library is missing, or an image cannot be read.
        """
        runs = {one.slot: self._runs(one) for one in open_drafts(drafts) if one.prompt}
        texts = None if self.text is None else NearTexts(self.text, runs.values())
        images = None if self.image is None else NearImages(self.image)

        def marks(draft: Draft) -> Iterator[tuple[str, Mark]]:
            if texts is not None and draft.slot in runs:
                yield "text", texts.mark(runs[draft.slot])
            if images is not None and draft.image:
                yield "image", images.mark(desk.images.open(draft.image), draft.source)

        names = {one.slot: one.name for one in drafts}
        dropped: dict[int, Draft] = {}
        for draft in sorted(open_drafts(drafts), key=lambda one: one.slot):
            passed: list[Mark] = []
            for what, mark in marks(draft):
                if near := mark.first():
                    reason = f"{what} repeats {names[near.key]} ({near.likeness})"
                    dropped[draft.slot] = draft.drop(desk.stage, reason)
                    break
                passed.append(mark)
            else:
                for mark in passed:
                    mark.keep(draft.slot)
        return [dropped.get(one.slot, one) for one in drafts]

    def _runs(self, draft: Draft) -> frozenset[str]:
        """Returns the word runs of a draft's texts; those of edits of given images never match."""
        scope = "" if draft.source_prompt else draft.source
        return word_runs(f"{draft.source_prompt} {draft.prompt}", self.run_words, scope)
