"""Leaves out drafts whose texts repeat a prompt of a benchmark."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import ClassVar

from blip3o.curate.contamination import PromptIndex
from blip3o.curate.decontaminate import BUNDLED, benchmark_prompts
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecontaminateStage:
    """Drops drafts with a prompt, an instruction or a prompt of a source image of a benchmark.

    Args:
        name: name of the stage in its run.
        against: the benchmarks, as `blip3o data decontaminate --against` takes them: "geneval", one
            with a copy of its prompts, "wise=FOLDER", or any list of prompts, "mine=FILE".
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = False

    kind: str = "decontaminate"
    name: str = ""
    against: tuple[str, ...] = BUNDLED

    def fingerprint(self) -> str:
        """Returns a hash of the prompts; see `StageConfig`."""
        prompts = [dataclasses.astuple(one) for one in benchmark_prompts(self.against)]
        return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts, some of them dropped; see `StageConfig`."""
        index = _index(self.against)
        return [one if one.dropped else _checked(one, index, desk.stage) for one in drafts]


def _checked(draft: Draft, index: PromptIndex, stage: str) -> Draft:
    matches = (index.match(text) for text in (draft.prompt, draft.source_prompt) if text)
    match = next(filter(None, matches), None)
    return draft if match is None else draft.drop(stage, match.reason)


@functools.cache
def _index(against: tuple[str, ...]) -> PromptIndex:
    """Returns the index of the prompts, which each process builds once."""
    return PromptIndex(benchmark_prompts(against))
