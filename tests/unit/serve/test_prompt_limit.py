"""The prompt limit counts the tokens that the model reads, images included."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from PIL import Image

from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.imaging.fit import ImageFitConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.service import Service
from blip3o.text.chat import ChatConfig, ChatTemplate
from blip3o.text.tokenizer import Tokenizer

LARGE, SMALL = Image.new("RGB", (2000, 1500)), Image.new("RGB", (448, 448))


def service_of(tokenizer: Tokenizer, limit: int) -> Service:
    """A server of the released 4B model without its weights."""
    pipe: Any = object.__new__(Blip3oPipeline)
    pipe.chat_template = ChatTemplate(tokenizer, ChatConfig(), 256)
    pipe.model = SimpleNamespace(
        config=SimpleNamespace(
            question_images=ImageFitConfig(mode="aspect"),
            backbone=Qwen2_5VLBackboneConfig.published_4b(),
            max_prompt_tokens=Qwen2_5VLBackboneConfig.published_4b().max_positions - 64,
        )
    )
    service = object.__new__(Service)
    service._pipe = pipe
    service.config = ServeConfig(max_prompt_tokens=limit)
    return service


@pytest.mark.parametrize(
    ("images", "read"),
    [([], 0), ([SMALL], 256), ([LARGE], 2028), ([LARGE] * 4, 8112), ([SMALL, LARGE], 2284)],
)
def test_a_prompt_with_images_is_counted_as_it_is_read(
    tiny_tokenizer: Tokenizer, images: list[Image.Image], read: int
) -> None:
    messages = [Message(role="user", text=IMAGE_MARK * len(images) + "What is this?")]
    words = [Message(role="user", text="What is this?")]
    frames = 2 * len(images)  # one token before and one after each image
    length = service_of(tiny_tokenizer, 99)._pipe.prompt_length(words) + frames + read
    sizes = [image.size for image in images]
    assert service_of(tiny_tokenizer, 99)._pipe.prompt_length(messages, sizes) == length
    service_of(tiny_tokenizer, length).check_chat(messages, images, "messages")
    with pytest.raises(ApiError, match=f"{length} tokens; at most {length - 1}") as caught:
        service_of(tiny_tokenizer, length - 1).check_chat(messages, images, "messages")
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_an_image_that_is_too_thin_is_refused_before_it_waits(tiny_tokenizer: Tokenizer) -> None:
    messages = [Message(role="user", text=f"{IMAGE_MARK}What?")]
    with pytest.raises(ApiError, match="too thin"):
        service_of(tiny_tokenizer, 99).check_chat(
            messages, [Image.new("RGB", (9000, 3))], "messages"
        )
