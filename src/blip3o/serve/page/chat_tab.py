"""The chat tab: the user sends text and images; the answer is streamed text or an image."""

import base64
import mimetypes
from collections.abc import AsyncGenerator
from functools import partial
from typing import TypedDict

import gradio as gr

from blip3o.core.errors import UsageError
from blip3o.serve.http.completion_routes import completion_job
from blip3o.serve.http.errors import ApiError, validated
from blip3o.serve.http.fields import JsonObject
from blip3o.serve.http.schemas import ChatCompletionRequest
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Answered, Drawn, ImageRequest, Text
from blip3o.serve.page.examples import QUESTION
from blip3o.serve.page.parts import own_file, saved, settings_of, shown, wire, with_messages
from blip3o.text.chat import IMAGE_IN_WORDS, said_back

_TEXT, _IMAGE = "Text", "Image"
_EMPTY: dict[str, list[str] | str] = {"text": "", "files": []}


class FileValue(TypedDict):
    """A file of a conversation."""

    path: str
    mime_type: str | None


class ChatPart(TypedDict, total=False):
    """A part of a turn: a text, or a file."""

    type: str
    text: str
    file: FileValue
    alt_text: str


class ChatTurn(TypedDict):
    """A turn in the format of `gr.Chatbot`."""

    role: str
    content: str | list[ChatPart]


class MessageValue(TypedDict, total=False):
    """The value of `gr.MultimodalTextbox`."""

    text: str | None
    files: list[str] | None


def chat_tab(service: Service, images: list[str]) -> None:
    """Adds the fields of the tab and their handlers; `images` are example files."""
    turns = gr.Chatbot(
        label="Conversation",
        height=460,
        buttons=["copy"],
        feedback_options=None,
        placeholder="Add an image and ask about it.",
    )
    with gr.Row(elem_classes="seed"):
        kind = gr.Radio([_TEXT, _IMAGE], value=_TEXT, label="Answer with", min_width=200)
        clear = gr.Button("New conversation", min_width=160)
    message = gr.MultimodalTextbox(
        label="Message",
        placeholder="A message; attach images with the clip, or paste them",
        file_types=["image"],
        file_count="multiple",
        max_plain_text_length=100_000,
    )
    rows = [[{"text": QUESTION, "files": [path]}] for path in images]
    examples = gr.Examples(rows, [message], label="Examples: click one to ask")
    events = (message.submit, examples.load_input_event.then)
    started = wire(partial(_send, service), [message, turns, kind], [message, turns], *events)
    wire(_clear, None, [message, turns], clear.click, cancels=started)


def _clear() -> tuple[gr.MultimodalTextbox, list[ChatTurn]]:
    """Returns no turns, and an enabled message field: a cancelled answer leaves it disabled."""
    return gr.MultimodalTextbox(interactive=True), []


@with_messages
async def _send(
    service: Service, message: MessageValue, turns: list[ChatTurn], kind: str
) -> AsyncGenerator[tuple[object, object]]:
    files, text = message.get("files") or [], message.get("text") or ""
    if not text.strip():
        raise UsageError("enter a message first")
    parts = [_file(path, "image from the user") for path in files]
    turn: ChatTurn = {"role": "user", "content": [*parts, {"type": "text", "text": text.strip()}]}
    asked = [*turns, turn]
    yield gr.MultimodalTextbox(value=_EMPTY, interactive=False), asked
    try:
        async for content in _answer(service, asked, kind):
            yield gr.skip(), [*asked, {"role": "assistant", "content": content}]
    except (ApiError, UsageError) as error:
        # Restores the message and the conversation.
        value = {"text": text, "files": files}
        yield gr.MultimodalTextbox(value=value, interactive=True), turns
        raise shown(error) from error
    yield gr.MultimodalTextbox(interactive=True), gr.skip()


async def _answer(
    service: Service, turns: list[ChatTurn], kind: str
) -> AsyncGenerator[str | list[ChatPart]]:
    """Yields the content of the answer so far."""
    modality = "image" if kind == _IMAGE else "text"
    sent = turns[-1:] if kind == _IMAGE else turns
    limit = service.config.max_image_bytes
    messages = []
    for turn in sent:
        content = [_part(part, turn["role"], limit) for part in _parts(turn)]
        messages.append({"role": turn["role"], "content": content})
    fields = {"messages": messages, "modalities": [modality]}
    job = await completion_job(service, validated(ChatCompletionRequest, fields))
    text = ""
    async with service.events(job) as events:
        async for event in events:
            if isinstance(event, Text):
                text += event.piece
                yield text
            elif isinstance(event, Answered):
                service.metrics.answer_tokens(event.answer_tokens)
                if not text.strip():
                    yield "(empty answer)"
                return
            elif isinstance(event, Drawn) and isinstance(job, ImageRequest):
                prompt = _words(turns[-1])
                path = saved(event.image, settings_of(service, job, 0, prompt))
                yield [_file(path, prompt)]
                return


def _file(path: str, alt_text: str) -> ChatPart:
    kind = mimetypes.guess_type(path)[0]
    return {"type": "file", "file": {"path": path, "mime_type": kind}, "alt_text": alt_text}


def _parts(turn: ChatTurn) -> list[ChatPart]:
    content = turn["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _words(turn: ChatTurn) -> str:
    return " ".join(part["text"] for part in _parts(turn) if part["type"] == "text")


def _part(part: ChatPart, role: str, max_bytes: int) -> JsonObject:
    """Returns a part of a turn in the format of the API."""
    if role != "user":  # assistant turns are sent as text only; an image mark is written in words
        text = said_back(part["text"]) if part["type"] == "text" else IMAGE_IN_WORDS
        return {"type": "text", "text": text}
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    with own_file(part["file"]["path"]).open("rb") as file:
        data = base64.b64encode(file.read(max_bytes + 1)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
