"""The chat in a terminal: reads text and images, and streams the answers."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO, Unpack
from urllib.parse import unquote, urlsplit

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text_settings import TextSettings
from blip3o.imaging.load import open_image
from blip3o.text.chat import said_back

HELP = (
    "Type a message. /image FILE... adds images to the next message, /new starts over, /quit ends."
)


def converse(
    pipe: Blip3oPipeline, lines: TextIO, out: TextIO, **settings: Unpack[TextSettings]
) -> None:
    """Reads messages line by line and writes the answers until the input ends.

    Args:
        pipe: the pipeline.
        lines: the user's input.
        out: stream for prompts and answers.
        settings: settings of `TextSampling`, by name; greedy by default.
    """
    messages: list[Message] = []
    images: list[Image.Image] = []
    pending: list[Image.Image] = []
    out.write(HELP + "\n")
    while True:
        out.write("> ")
        out.flush()
        line = lines.readline()
        text = line.strip()
        if not line or text == "/quit":
            out.write("\n")
            return
        try:
            if text == "/new":
                messages.clear()
                images.clear()
                pending.clear()
            elif text.split()[:1] == ["/image"]:
                added = [open_image(path) for path in image_paths(text.removeprefix("/image"))]
                pending += added
                out.write(f"({len(added)} image{'s' * (len(added) != 1)} added)\n")
            elif text.startswith("/"):
                raise UsageError(f"unknown command {text.split()[0]}; {HELP}")
            elif text:
                marks = f"{IMAGE_MARK}\n" * len(pending)
                turn = Message(role="user", text=marks + text)
                pieces = pipe.stream([*messages, turn], [*images, *pending], **settings)
                answer = _shown(pieces, out)
                messages += [turn, Message(role="assistant", text=said_back(answer))]
                images += pending
                pending.clear()
        except UsageError as error:
            out.write(f"({error})\n")


def image_paths(text: str) -> list[str]:
    """Returns the files named after `/image`, split as in a shell.

    A name may be quoted, contain escaped spaces, start with `~`, or be a file:// URL, which
    terminals paste for a dragged file. A text that is the name of one file is not split.

    Args:
        text: one or more names.

    Raises:
        UsageError: if there is no name, or a quote is not closed.
    """
    whole = text.strip()
    if not whole:
        raise UsageError("no file: give its name, /image FILE")
    if _exists(whole):
        return [whole]
    try:
        words = shlex.split(whole)
    except ValueError as error:
        raise UsageError(f"no such image: {whole} ({str(error).lower()})") from error
    paths = [_path(word) for word in words]
    if not all(map(_exists, paths)) and _exists(_path(whole)):
        return [_path(whole)]  # a name with plain spaces
    return paths


def _path(word: str) -> str:
    url = urlsplit(word) if word.lower().startswith("file:") else None
    if url is not None and url.netloc in ("", "localhost"):
        return unquote(url.path)
    return os.path.expanduser(word)


def _exists(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # not a valid file name
        return False


def _shown(pieces: Iterable[str], out: TextIO) -> str:
    """Writes the pieces of an answer as they arrive and returns the whole answer."""
    answer = ""
    for piece in pieces:
        answer += piece
        out.write(piece)
        out.flush()
    out.write("\n")
    return answer.strip()
