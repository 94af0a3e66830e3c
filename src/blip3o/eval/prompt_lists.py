"""Lists of prompts that a user gives, for benchmarks that accept any prompts.

prompts.txt     one prompt on each line
prompts.jsonl   one object on each line: "prompt", and optionally "category"
meta_data.json  an object of such objects by name, as MJHQ-30K has it, or a list of them
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from blip3o.core.errors import UsageError, shown
from blip3o.core.files import file_sha256, read_lines, read_text
from blip3o.core.rng import numpy_rng
from blip3o.core.texts import load_json


@dataclasses.dataclass(frozen=True)
class ListedPrompt:
    """A prompt of a list.

    Args:
        number: its place in the file, from 0; blank lines do not count.
        text: the prompt.
        category: its category; empty if it has none.
    """

    number: int
    text: str
    category: str = ""


@dataclasses.dataclass(frozen=True)
class PromptList:
    """The prompts of a file.

    Args:
        prompts: the prompts in the order of the file.
        sha256: hash of the file.
    """

    prompts: tuple[ListedPrompt, ...]
    sha256: str

    def drawn(self, count: int | None, seed: int) -> tuple[ListedPrompt, ...]:
        """Returns a number of prompts, drawn by a seed, in the order of the file; None for all."""
        if count is None or count >= len(self.prompts):
            return self.prompts
        chosen = numpy_rng(seed, "eval prompts").permutation(len(self.prompts))[:count]
        return tuple(self.prompts[place] for place in sorted(chosen.tolist()))


def read_prompts(path: str) -> PromptList:
    """Returns the prompts of a file; its ending says the form.

    Raises:
        UsageError: if it cannot be read, has another form, or has no prompt; names the line.
    """
    file = Path(path)
    match file.suffix.lower():
        case ".jsonl":
            found = _objects_of_lines(file)
        case ".json":
            found = _objects(file)
        case ".txt":
            found = ((f"line {n}", line) for n, line in enumerate(read_lines(file, "prompts"), 1))
        case _:
            raise UsageError(f"{path} is no list of prompts: give a .txt, .jsonl or .json file")
    prompts: list[ListedPrompt] = []
    for place, one in found:
        given = one if isinstance(one, dict) else {"prompt": one}
        text, category = given.get("prompt"), given.get("category", "")
        if not isinstance(text, str) or not isinstance(category, str):
            raise UsageError(f"{path}, {place}: a prompt is a text in the field prompt")
        if text.strip():
            prompts.append(ListedPrompt(len(prompts), text.strip(), category))
        elif isinstance(one, dict):
            raise UsageError(f"{path}, {place}: the prompt is empty")
    if not prompts:
        raise UsageError(f"{path} has no prompt")
    return PromptList(tuple(prompts), file_sha256(file))


def _objects_of_lines(file: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(read_lines(file, "prompts"), 1):
        if line.strip():
            yield f"line {number}", _loaded(file, line, f", line {number}")


def _objects(file: Path) -> Iterator[tuple[str, object]]:
    data = _loaded(file, read_text(file, "prompts"))
    if isinstance(data, dict):
        yield from ((f"entry {shown(name)}", one) for name, one in data.items())
    elif isinstance(data, list):
        yield from ((f"entry {number}", one) for number, one in enumerate(data))
    else:
        raise UsageError(f"{file} is no list of prompts: it needs an object or a list")


def _loaded(file: Path, text: str, place: str = "") -> object:
    try:
        return load_json(text)
    except ValueError as error:
        raise UsageError(f"{file}{place}: {error}") from error
