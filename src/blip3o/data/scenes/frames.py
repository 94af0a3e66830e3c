"""Hand-written frames: sentences with gaps, and which of them training never sees.

A file `frames/NAME.txt` has sections. A line `[kind]` begins one, and each line below it is a
frame: words with gaps in braces, such as "could you draw {scene}, please". A star before a frame
marks a template: one of the few plain wordings that the benchmark asks first. Lines with # are
comments.

A fifth of the other frames is held out: training never uses them, and the benchmark measures the
understanding of new wordings with them. A hash of the frame decides, so a new frame moves no other.
"""

import functools
import hashlib
from importlib import resources
from typing import Literal

from blip3o.core.errors import unknown_name

Wording = Literal["template", "train", "heldout"]
"""Which frames may be used: the templates, those of training (templates too), or the held-out."""
_HELDOUT_SHARE = 0.2


@functools.cache
def frames(file: str, kind: str, wording: Wording) -> tuple[str, ...]:
    """Returns the frames of a kind, in the order of their file.

    Args:
        file: "prompts", "questions" or "edits".
        kind: a section of the file.
        wording: which frames. A kind without held-out frames returns those of training for
            "heldout", and one without templates those of training for "template".

    Raises:
        UsageError: if the file has no such section.
    """
    sections = _sections(file)
    if kind not in sections:
        raise unknown_name(f"kind of {file}", kind, sections)
    lines = sections[kind]
    chosen = tuple(text for text, group in lines if group == wording)
    if wording != "train" and chosen:
        return chosen
    return tuple(text for text, group in lines if group != "heldout")


def kinds(file: str) -> tuple[str, ...]:
    """Returns the kinds of a file, in order."""
    return tuple(_sections(file))


@functools.cache
def _sections(file: str) -> dict[str, list[tuple[str, Wording]]]:
    """Returns the frames of each kind, each with the group it belongs to."""
    folder = resources.files("blip3o.data.scenes") / "frames"
    sections: dict[str, list[tuple[str, Wording]]] = {}
    kind = ""
    for line in (folder / f"{file}.txt").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            kind = text[1:-1]
            sections[kind] = []
        elif text and not text.startswith("#"):
            sections[kind].append(_grouped(file, kind, text))
    return sections


def _grouped(file: str, kind: str, text: str) -> tuple[str, Wording]:
    if text.startswith("*"):
        return text[1:].strip(), "template"
    digest = hashlib.sha256(f"{file}/{kind}/{text}".encode()).digest()
    is_heldout = int.from_bytes(digest[:4]) < _HELDOUT_SHARE * 2**32
    return text, "heldout" if is_heldout else "train"
