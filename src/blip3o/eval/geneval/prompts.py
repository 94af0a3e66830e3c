"""The prompts of GenEval: the published file, and the check of a line."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o.core.errors import UsageError, shown
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Item
from blip3o.eval.geneval.rules import COLORS, RELATIONS
from blip3o.eval.prompt_files import PromptFile

PROMPTS = PromptFile(
    name="geneval/evaluation_metadata.jsonl",
    sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    is_bundled=True,
    origin="github.com/djghosh13/geneval prompts/evaluation_metadata.jsonl",
)
CLASSES = PromptFile(
    name="geneval/object_names.txt",
    sha256="608f6a0e5c8ca1c7a92b818430141fe268c85b7930b50f4160f1d65893b5bacd",
    is_bundled=True,
    origin="github.com/djghosh13/geneval evaluation/object_names.txt",
)

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six tasks in the order of the file."""

KEYS = ("tag", "include", "exclude", "prompt")
"""The keys of a published line; programs of models add others, which are not compared."""


def class_names() -> list[str]:
    """Returns the 80 classes in the order of COCO."""
    return CLASSES.read().text.splitlines()


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The lines of a prompt file.

    Args:
        lines: the objects, in the order of the file.
        is_published: whether the file is the published one.
    """

    lines: Sequence[Mapping[str, Any]]
    is_published: bool


def read_prompts(path: str | None = None, *, allow_changed: bool = False) -> Prompts:
    """Returns the prompts.

    Args:
        path: a file in the form of the published one; None reads the published one.
        allow_changed: accepts another file.

    Raises:
        UsageError: if the file is missing or not the published one, or a line cannot be judged.
    """
    file = PROMPTS.read(path, allow_changed=allow_changed)
    names = frozenset(class_names())
    lines: list[Mapping[str, Any]] = []
    seen: dict[str, int] = {}
    for number, text in enumerate(file.text.splitlines()):
        where = f"{path or PROMPTS.name} line {number + 1}"
        try:
            line = checked_metadata(load_json(text), where, names)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error
        if (other := seen.setdefault(identity(line), number)) != number:
            raise UsageError(f"{where} repeats line {other + 1}; remove one of them")
        lines.append(line)
    return Prompts(lines=lines, is_published=file.is_published)


def identity(metadata: Mapping[str, Any]) -> str:
    """Returns a text that is equal for objects with equal published keys."""
    return json.dumps({key: metadata[key] for key in KEYS if key in metadata}, sort_keys=True)


def item_of_metadata(metadata: Mapping[str, Any], number: int | None = None) -> Item:
    """Returns the item of a line.

    Args:
        metadata: a checked line.
        number: its number in the prompt file, from 0; None for a line that is in no file, whose
            number and name then come from its content.
    """
    if number is None:
        name = hashlib.sha256(identity(metadata).encode()).hexdigest()[:15]
        number = int(name, 16)
    else:
        name = f"{number:05d}"
    return Item(
        id=name, number=number, prompt=metadata["prompt"], category=metadata["tag"], data=metadata
    )


def checked_metadata(
    value: object, where: str, names: frozenset[str] | None = None
) -> Mapping[str, Any]:
    """Returns an object of the prompt file that the rules can judge.

    Args:
        value: the object.
        where: its place, for messages.
        names: `class_names`, if they are at hand.

    Raises:
        UsageError: if a key is missing, or a class, count, color or relation is not GenEval's.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be an object with {', '.join(KEYS)}, got {shown(value)}")
    names = names or frozenset(class_names())
    for key in ("tag", "prompt"):
        if not isinstance(value.get(key), str):
            raise UsageError(f"{where} must have a text {key!r}, got {shown(value.get(key))}")
    for key in ("include", "exclude"):
        entries = value.get(key, [])
        if not isinstance(entries, list):
            raise UsageError(f"{where}: {key!r} must be a list, got {shown(entries)}")
        for number, entry in enumerate(entries):
            if fault := _entry_fault(entry, number, names):
                raise UsageError(f"{where}: entry {number} of {key!r}: {fault}")
    return value


def _entry_fault(entry: object, number: int, names: frozenset[str]) -> str | None:
    if not isinstance(entry, Mapping):
        return f"it must be an object, got {shown(entry)}"
    count, color, position = entry.get("count"), entry.get("color"), entry.get("position")
    if entry.get("class") not in names:
        return f"{shown(entry.get('class'))} is not one of GenEval's 80 classes"
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return f"count must be a number from 1, got {shown(count)}"
    if "color" in entry and color not in COLORS:
        return f"color must be one of {', '.join(COLORS)}, got {shown(color)}"
    if "position" in entry:
        match position:
            case [str(relation), int(place)] if relation in RELATIONS and 0 <= place < number:
                return None
        return (
            f"position must be [one of {', '.join(RELATIONS)}; the number of an earlier entry], "
            f"got {shown(position)}"
        )
    return None
