"""The tab that talks: texts and images in, answers as they are written, or an image."""

import base64
import mimetypes
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from blip3o.core.errors import UsageError
from blip3o.serve.http.chat import chat_job
from blip3o.serve.http.errors import ApiError, validated
from blip3o.serve.http.schemas import ChatCompletionRequest
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Answered, Drawn, ImageRequest, Text
from blip3o.serve.page.examples import QUESTION
from blip3o.serve.page.parts import QUIET, events, own_file, saved, sentences, settings_of, shown
from blip3o.text.chat import IMAGE_IN_WORDS, said_back

_TEXT, _IMAGE = "Text", "Image"
_EMPTY: dict[str, Any] = {"text": "", "files": []}
Turns = list[dict[str, Any]]


def chat_tab(service: Service, images: list[str]) -> None:
    """Adds the tab's fields and what they do.

    Args:
        service: what requests are handed to.
        images: files of examples.
    """
    talk = gr.Chatbot(
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
        placeholder="A message; images by the clip or from the clipboard",
        file_types=["image"],
        file_count="multiple",
        max_plain_text_length=100_000,
    )
    work: dict[str, Any] = {
        "fn": _answerer(service),
        "inputs": [message, talk, kind],
        "outputs": [message, talk],
        **QUIET,
    }
    imaged: list[list[Any]] = [[{"text": QUESTION, "files": [path]}] for path in images]
    examples = gr.Examples(imaged, [message], label="Examples: one click asks")
    started: list[Any] = [message.submit(**work), examples.load_input_event.then(**work)]
    clear.click(_begin_anew, None, [message, talk], cancels=started, **QUIET)


def _begin_anew() -> tuple[Any, Turns]:
    """Returns a field that takes messages, which an answer that was cut off took away, and none."""
    return gr.MultimodalTextbox(interactive=True), []


def _answerer(service: Service) -> Any:  # noqa: ANN401  (a handler of Gradio's)
    @sentences
    async def answer(message: dict[str, Any], talk: Turns, kind: str) -> AsyncIterator[Any]:
        files, text = message.get("files") or [], (message.get("text") or "").strip()
        if not text:
            raise UsageError("write a message first")
        parts = [_file(path, "an image of the user's") for path in files]
        turns = [*talk, {"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        yield gr.MultimodalTextbox(value=_EMPTY, interactive=False), turns
        try:
            async for content in _answer(service, turns, kind):
                yield gr.skip(), [*turns, {"role": "assistant", "content": content}]
        except (ApiError, UsageError) as error:
            # What was written is given back, and the conversation is as it was.
            yield gr.MultimodalTextbox(value=message, interactive=True), talk
            raise shown(error) from error
        yield gr.MultimodalTextbox(interactive=True), gr.skip()

    return answer


async def _answer(service: Service, turns: Turns, kind: str) -> AsyncIterator[Any]:
    """Yields what the answer holds so far."""
    modality = "image" if kind == _IMAGE else "text"
    asked = turns[-1:] if kind == _IMAGE else turns
    limit = service.config.max_image_bytes
    messages = [
        {
            "role": turn["role"],
            "content": [_part(part, turn["role"], limit) for part in _parts(turn)],
        }
        for turn in asked
    ]
    fields = {"messages": messages, "modalities": [modality]}
    job = await chat_job(service, validated(ChatCompletionRequest, fields))
    said = ""
    async with events(service, job) as arriving:
        async for event in arriving:
            if isinstance(event, Text):
                said += event.piece
                yield said
            elif isinstance(event, Answered):
                service.metrics.answer_tokens(event.answer_tokens)
                if not said.strip():
                    yield "(the model says nothing)"
                return
            elif isinstance(event, Drawn) and isinstance(job, ImageRequest):
                settings = settings_of(service, job, 0, _words(turns[-1]))
                yield [_file(saved(event.image, settings), settings["prompt"])]
                return


def _file(path: str, words: str) -> dict[str, Any]:
    kind = mimetypes.guess_type(path)[0]
    return {"type": "file", "file": {"path": path, "mime_type": kind}, "alt_text": words}


def _parts(turn: dict[str, Any]) -> list[Any]:
    content = turn["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _words(turn: dict[str, Any]) -> str:
    return " ".join(part["text"] for part in _parts(turn) if part["type"] == "text")


def _part(part: dict[str, Any], role: str, max_bytes: int) -> dict[str, Any]:
    """Returns a part of a turn as the API takes it."""
    if role != "user":  # an answer holds words alone, also where a model said the mark
        said = said_back(part["text"]) if part["type"] == "text" else IMAGE_IN_WORDS
        return {"type": "text", "text": said}
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    with own_file(part["file"]["path"]).open("rb") as file:
        data = base64.b64encode(file.read(max_bytes + 1)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
