"""Prompts and instructions from a grammar: word lists and templates."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import file_sha256
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, Step, concerns
from blip3o.curate.grammar import grammar_file, read_grammar


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplatesStage:
    """Writes prompts, or the prompts of source images and instructions, with a grammar.

    Args:
        name: name of the stage in its run.
        grammar: name of a bundled grammar ("blip3o_60k", "edits"), or a file of your own that ends
            in .yaml; `blip3o.curate.grammar` explains its syntax. It needs the drafts' categories.
        categories: categories of the drafts to fill; empty for all.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = False

    kind: str = "templates"
    name: str = ""
    grammar: str
    categories: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Returns the hash of the grammar; see `StageConfig`."""
        file = grammar_file(self.grammar)
        try:
            return file_sha256(file)
        except OSError as error:
            raise UsageError(f"cannot read the grammar {file}: {reason_of(error)}") from error

    def num_expected(self, category: str, num_drafts: int) -> float:
        """Returns how many different sentences some drafts of a category are expected to get.

        Raises:
            UsageError: if the grammar has no such category.
        """
        return read_grammar(self.grammar).num_expected(category, num_drafts)

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts with texts and facts; see `StageConfig`."""
        return [
            self._filled(one, desk) if concerns(one, self.categories) else one for one in drafts
        ]

    def _filled(self, draft: Draft, desk: Desk) -> Draft:
        sentence = read_grammar(self.grammar).sentence(draft.category, desk.rng(draft))
        filled = dataclasses.replace(
            draft, prompt=sentence.text, source_prompt=sentence.source, facts=sentence.facts
        )
        return filled.noted(Step(stage=desk.stage, text=f"template: {sentence.template}"))
