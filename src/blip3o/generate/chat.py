"""A conversation in a terminal: text and pictures, answers as they are written."""

from collections.abc import Iterable
from typing import TextIO, Unpack

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text_sampling import TextSettings
from blip3o.imaging.load import open_image
from blip3o.text.chat import said_back

HELP = (
    "Type a message. /image FILE adds a picture to the next message, /new starts over, /quit ends."
)


def converse(
    pipe: Blip3oPipeline, lines: TextIO, out: TextIO, **settings: Unpack[TextSettings]
) -> None:
    """Reads messages line by line and writes the answers until the input ends.

    Args:
        pipe: the pipeline.
        lines: where the user's lines come from.
        out: where answers go.
        settings: those of `TextSampling`, by name; the likeliest tokens by default.
    """
    messages: list[Message] = []
    pictures: list = []
    pending: list = []
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
                messages, pictures, pending = [], [], []
            elif text.startswith("/image"):
                pending.append(open_image(text.removeprefix("/image").strip()))
                out.write("(picture added)\n")
            elif text.startswith("/"):
                raise UsageError(f"unknown command {text.split()[0]}; {HELP}")
            elif text:
                marks = f"{IMAGE_MARK}\n" * len(pending)
                turn = Message(role="user", text=marks + text)
                pieces = pipe.stream([*messages, turn], [*pictures, *pending], **settings)
                answer = _shown(pieces, out)
                messages += [turn, Message(role="assistant", text=said_back(answer))]
                pictures, pending = pictures + pending, []
        except UsageError as error:
            out.write(f"({error})\n")


def _shown(pieces: Iterable[str], out: TextIO) -> str:
    """Returns an answer whose pieces are written as they come."""
    answer = ""
    for piece in pieces:
        answer += piece
        out.write(piece)
        out.flush()
    out.write("\n")
    return answer.strip()
