"""A conversation in a terminal: text and pictures, answers as they are written."""

from typing import TextIO

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.imaging.load import open_image
from blip3o.text.chat import said_back

HELP = (
    "Type a message. /image FILE adds a picture to the next message, /new starts over, /quit ends."
)


def converse(pipe: Blip3oPipeline, lines: TextIO, out: TextIO) -> None:
    """Reads messages line by line and writes the answers until the input ends.

    Args:
        pipe: the pipeline.
        lines: where the user's lines come from.
        out: where answers go.
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
                answer = _answer(pipe, [*messages, turn], [*pictures, *pending], out)
                messages += [turn, Message(role="assistant", text=said_back(answer))]
                pictures, pending = pictures + pending, []
        except UsageError as error:
            out.write(f"({error})\n")


def _answer(pipe: Blip3oPipeline, messages: list[Message], pictures: list, out: TextIO) -> str:
    pieces = []
    for piece in pipe.stream(messages, pictures):
        pieces.append(piece)
        out.write(piece)
        out.flush()
    out.write("\n")
    return "".join(pieces).strip()
