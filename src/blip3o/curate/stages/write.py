"""Prompts and instructions in the words of a chat model."""

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

from blip3o.core.bounds import Count, NotNegative
from blip3o.core.errors import UsageError, unknown_name
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, Step, concerns
from blip3o.curate.examples import EXAMPLE_TEXT
from blip3o.curate.models import Reply, Request
from blip3o.curate.near import word_runs
from blip3o.remote.chat import ChatRequest

INSTRUCTION = """\
Below is a short idea for an image. Rewrite it as the prompt that a person would send to an image
generator: one or two natural English sentences of 15 to 45 words.

Keep every thing, number, color and position of the idea exactly as it is, and add no further thing
that could be counted. Keep words in double quotes unchanged, with their quotes: the image shows
them as text. You may add light, mood, material, point of view or medium where they fit. Do not
address the generator ("please draw"), and name no artist and no brand.

Idea: a photo of three green cups on a stone bench
Prompt: Three green enamel cups stand in a row on a weathered stone bench, their rims catching the
soft light of an overcast morning.

Idea: a fisherman mending a net, watercolor
Prompt: A loose watercolor of an old fisherman bent over his net on a quiet pier, painted in washes
of grey and pale blue, with the paper showing through.

Idea: a shop sign that reads "OPEN LATE"
Prompt: A hand-painted wooden shop sign that reads "OPEN LATE" hangs over a narrow doorway at dusk,
lit from above by a single warm bulb.

Idea: a woman shading her eyes with one hand, on a dune
Prompt: Seen from below, a woman on the crest of a dune shades her eyes with one hand and looks
toward the horizon while the wind lifts her scarf.

Answer with the prompt alone.

Idea: {prompt}
Prompt:"""
"""The default instruction."""

_GAPS = ("prompt", "source_prompt", "category")
_GAP = re.compile(r"\{(\w+)\}")
_FENCE = re.compile(r"```\w*")
_MARKUP = re.compile(r"^(?:#+|[-*>]|\d+[.)])\s+|\*\*|__|`")
_LABEL = re.compile(r"^(?:[a-z]+ )?(?:prompt|caption|instruction|answer) ?:\s*", re.IGNORECASE)
_INTRODUCTION = re.compile(r"^(?:sure|certainly|of course|okay|here)\b.*[:!]$", re.I)
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_QUOTED = re.compile(r'"([^"]+)"')
_COPIED_WORDS = 8
"""Words in a row that an answer must not have from the instruction."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteStage:
    """Has a chat model write the prompt, or the instruction of an edit, anew.

    A draft is dropped if the model refuses, says nothing, is cut at `max_tokens`, leaves out words
    that the prompt has in double quotes, or copies a sentence of the instruction, as small models
    do with its examples.

    Args:
        name: name of the stage in its run.
        model: name of a chat model of the run.
        instruction: the request, with the gaps {prompt}, {source_prompt} and {category}.
        temperature: sampling temperature.
        max_tokens: longest answer.
        categories: categories of the drafts to write; empty for all.

    Raises:
        UsageError: if the instruction has an unknown gap, or none for a prompt.
    """

    version: ClassVar[int] = 2
    is_whole: ClassVar[bool] = False

    kind: str = "write"
    name: str = ""
    model: str
    instruction: str = INSTRUCTION
    temperature: NotNegative = 1.0
    max_tokens: Count = 256
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        gaps = _GAP.findall(self.instruction)
        for gap in gaps:
            if gap not in _GAPS:
                raise unknown_name("gap of the instruction", gap, _GAPS)
        if not {"prompt", "source_prompt"} & set(gaps):
            raise UsageError("the instruction needs the gap {prompt} or {source_prompt}")

    def fingerprint(self) -> str:
        """Returns an empty text; see `StageConfig`."""
        return ""

    def examples(self) -> list[Request]:
        """Returns the request of one draft; see `AskingStage`."""
        return [self._request(Draft(slot=0, category="", prompt=EXAMPLE_TEXT))]

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts with their new prompts; see `StageConfig`."""
        chosen = [one for one in drafts if concerns(one, self.categories)]
        model = desk.model(self.model)
        requests = [self._request(one) for one in chosen]
        replies = iter(model.replies(requests, stage=desk.stage) if requests else ())
        return [
            self._written(one, next(replies), desk.stage, model.license)
            if concerns(one, self.categories)
            else one
            for one in drafts
        ]

    def _request(self, draft: Draft) -> ChatRequest:
        text = _GAP.sub(lambda gap: str(getattr(draft, gap[1])), self.instruction)
        return ChatRequest(parts=(text,), temperature=self.temperature, max_tokens=self.max_tokens)

    def _written(self, draft: Draft, reply: Reply, stage: str, license: str) -> Draft:
        step = Step(
            stage=stage, model=reply.model, license=license, request=reply.request, text=reply.text
        )
        noted = draft.noted(step)
        if reply.outcome != "answered":
            reason = {"refusal": f"refused: {reply.text}", "cut": "the answer was cut"}
            return noted.drop(stage, reason.get(reply.outcome, "the answer is empty"))
        text = cleaned(reply.text)
        if not text:
            return noted.drop(stage, "the answer is empty")
        for quoted in _QUOTED.findall(draft.prompt):
            if quoted not in text:
                return noted.drop(stage, f'the answer leaves out "{quoted}"')
        copied = word_runs(text, _COPIED_WORDS) & word_runs(self.instruction, _COPIED_WORDS)
        if copied - word_runs(f"{draft.source_prompt} {draft.prompt}", _COPIED_WORDS):
            return noted.drop(stage, "the answer copies the instruction")
        return dataclasses.replace(noted, prompt=text)


def cleaned(answer: str) -> str:
    """Returns the prompt in an answer: one line, without labels, markup and quotes around it."""
    lines = [_FENCE.sub("", line).strip() for line in answer.splitlines()]
    lines = [line for line in lines if line and not _INTRODUCTION.match(line)]
    text = " ".join(_LABEL.sub("", _MARKUP.sub("", line)) for line in lines)
    text = " ".join(text.replace("*", "").split())
    inner = text[1:-1]
    closing = _QUOTES.get(text[:1], "")
    is_quoted = bool(closing) and text.endswith(closing)
    if is_quoted and text[0] not in inner and closing not in inner:
        return inner.strip()
    return text
