"""Contract of a pipeline with every backbone and every pair of image encoder and decoder."""

import dataclasses
from collections import deque
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.decoding import RowDecoder
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text_sampling import TextSampling
from blip3o.imaging.fit import ImageFitConfig
from blip3o.models.backbones import BACKBONES
from blip3o.models.decoders import DECODERS
from blip3o.models.encoders import ENCODERS
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.serve.answers import AnswerDesk
from blip3o.serve.jobs import ChatRequest, Job, Text
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import Tokenizer, train_tokenizer

PAIRS = {
    "eva_clip": "sdxl",
    "clip": "sdxl",
    "siglip2": "sana",
    "vae": "vae",
    "pocket": "pocket",
}
"""Decoder for the features of each image encoder."""
TOWERS = (*BACKBONES.names(), "qwen3 with a tower")
RED, WIDE, TALL = (
    Image.new("RGB", size, color)
    for size, color in (((16, 16), "red"), ((40, 8), "blue"), ((12, 30), "green"))
)
PROMPTS = ["a red cat", "x", "a dog and a very long list of other things"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["draw: a red cat", "What is this? a dog", "edit: blue"] * 3, 300)


def backbone_config(name: str, tokenizer: Tokenizer, channels: int) -> Any:
    kind, _, has_tower = name.partition(" ")
    config = dataclasses.replace(
        BACKBONES.get(kind).tiny(), image_token_id=tokenizer.image_pad_id, max_positions=256
    )
    if has_tower:
        tower = ENCODERS.get("siglip2").tiny()
        return dataclasses.replace(config, image_channels=None, vision_tower=tower)
    if config.image_channels is not None:
        return dataclasses.replace(config, image_channels=channels)
    return config


def build(backbone: str, encoder: str, tokenizer: Tokenizer, **changes: Any) -> Blip3oPipeline:
    """Returns a pipeline with random weights, as new gates and last layers may be zero."""
    image_encoder = ENCODERS.get(encoder).tiny()
    channels, grid = image_encoder.num_channels, image_encoder.grid
    decoder = DECODERS.get(PAIRS[encoder]).tiny()
    if PAIRS[encoder] != "vae":
        decoder = dataclasses.replace(decoder, feature_channels=channels, grid=grid)
    language = backbone_config(backbone, tokenizer, channels)
    config = UnifiedModelConfig(
        backbone=language,
        image_encoder=image_encoder,
        generator=QueryDiTConfig.tiny(),
        image_decoder=decoder,
        chat=ChatConfig(system=None, generate="draw: {caption}", edit="edit: {instruction}"),
        sampling=SamplingConfig(num_inference_steps=2, num_decoder_steps=2, max_new_tokens=5),
        **changes,
    )
    torch.manual_seed(1)
    model = config.build()
    for name, parameter in model.named_parameters():
        std = 0.5 if name.startswith("backbone") and "embed" not in name else 0.15
        nn.init.normal_(parameter, std=std)
    return Blip3oPipeline(model, tokenizer)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def assert_rows_near(together: Tensor, alone: list[Tensor]) -> None:
    assert bool(together.isfinite().all())
    for row, one in enumerate(alone):
        scale = float(one.abs().max())
        torch.testing.assert_close(together[row : row + 1], one, rtol=0, atol=1e-3 * scale)


@pytest.mark.parametrize("encoder", PAIRS)
@pytest.mark.parametrize("backbone", TOWERS)
def test_batched_images_equal_single_images(
    backbone: str, encoder: str, tokenizer: Tokenizer
) -> None:
    """Prompts and instructions have different lengths; images are compared as pixels."""
    pipe = build(backbone, encoder, tokenizer)
    drawn = pipe(PROMPTS, generator=seeded(1, 2, 3), output_type="pt").images
    assert_rows_near(
        drawn,
        [
            pipe(prompt, generator=seeded(row + 1), output_type="pt").images
            for row, prompt in enumerate(PROMPTS)
        ],
    )
    images = [RED, WIDE, TALL]
    edited = pipe.edit(images, PROMPTS, generator=seeded(1, 2, 3), output_type="pt").images
    assert_rows_near(
        edited,
        [
            pipe.edit(one, text, generator=seeded(row + 1), output_type="pt").images
            for row, (one, text) in enumerate(zip(images, PROMPTS, strict=True))
        ],
    )
    assert not torch.allclose(drawn, edited)
    again = pipe.reconstruct(images, generator=seeded(1, 2, 3), output_type="pt").images
    assert_rows_near(
        again,
        [
            pipe.reconstruct(one, generator=seeded(row + 1), output_type="pt").images
            for row, one in enumerate(images)
        ],
    )


@pytest.mark.parametrize("backbone", TOWERS)
def test_batched_features_equal_single_features(backbone: str, tokenizer: Tokenizer) -> None:
    """Features depend on the prompt's words and length; saturated pixels could hide this."""
    pipe = build(backbone, "siglip2", tokenizer)
    for parameter in pipe.model.get_submodule("generator.dit").parameters():
        nn.init.normal_(parameter, std=0.5)
    together = pipe(PROMPTS, generator=seeded(1, 1, 1), output_type="features").images
    assert not any(torch.allclose(together[0], other, atol=1e-2) for other in together[1:])
    alone = [pipe(text, generator=seeded(1), output_type="features").images for text in PROMPTS]
    assert_rows_near(together, alone)


@pytest.fixture(scope="module", params=TOWERS)
def pipe(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Blip3oPipeline:
    changes = {}
    if request.param == "qwen2_5_vl":
        fit = ImageFitConfig(mode="aspect", min_pixels=64, max_pixels=1024)
        changes = {"question_images": fit}
    return build(request.param, "siglip2", tokenizer, **changes)


def user(text: str) -> Message:
    return Message(role="user", text=text)


def watch_logits(pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collects the logits of an answer, which show more of the inputs' influence than its words."""
    seen: list[Tensor] = []
    plain = RowDecoder.logits

    def watch(decoder: RowDecoder, hidden: Tensor) -> Tensor:
        logits = plain(decoder, hidden)
        seen.append(logits.masked_fill(logits.isinf(), 0.0))  # the placeholder
        return logits

    monkeypatch.setattr(RowDecoder, "logits", watch)
    return seen


def test_batched_answers_equal_single_answers(
    pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_logits(pipe, monkeypatch)
    images, questions = [RED, WIDE, TALL], ["What?", "a dog and a cat, or not?", "x"]
    together = pipe.answer_batch(images, questions, max_new_tokens=5)
    first = seen[0]
    for row, (image, question) in enumerate(zip(images, questions, strict=True)):
        seen.clear()
        assert pipe.ask(image, question, max_new_tokens=5) == together[row]
        assert_rows_near(first[row : row + 1], [seen[0]])


def test_an_answer_depends_on_every_image_and_their_order(
    pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_logits(pipe, monkeypatch)
    for images in ([RED, WIDE], [WIDE, RED], [RED, RED], [RED], [RED, WIDE, TALL], None):
        pipe.ask(images, "What is this?", max_new_tokens=1)
    for row, one in enumerate(seen):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in seen[row + 1 :])


def test_an_answer_depends_on_all_turns_and_images(
    pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_logits(pipe, monkeypatch)
    turns = [
        user(f"{IMAGE_MARK}\nWhat is this?"),
        Message(role="assistant", text="a dog"),
        user(f"a cat {IMAGE_MARK} or this {IMAGE_MARK}"),
    ]
    for messages, images in (
        (turns, [RED, WIDE, TALL]),
        (turns, [TALL, WIDE, RED]),
        (turns[2:], [WIDE, TALL]),
        ([*turns[:1], Message(role="assistant", text="a cat"), *turns[2:]], [RED, WIDE, TALL]),
    ):
        list(pipe.stream(messages, images, max_new_tokens=1))
    for row, one in enumerate(seen):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in seen[row + 1 :])


def test_the_pieces_of_a_stream_form_the_answer(pipe: Blip3oPipeline) -> None:
    messages = [user(f"{IMAGE_MARK}{IMAGE_MARK}\nWhat is this?")]
    stream = pipe.stream(messages, [WIDE, RED])
    assert iter(stream) is stream
    assert "".join(stream).strip() == "".join(list(pipe.stream(messages, [WIDE, RED]))).strip()
    asked = f"{IMAGE_MARK}\n{IMAGE_MARK}\nWhat is this?"
    whole = pipe.ask([WIDE, RED], "What is this?")
    assert "".join(pipe.stream([user(asked)], [WIDE, RED])).strip() == whole
    assert isinstance(pipe.ask(None, "What is this?"), str)


def test_answers_of_a_server_equal_single_answers(pipe: Blip3oPipeline) -> None:
    """Rows of different lengths share forward passes; they start and end at different times."""
    asked: list[tuple[list[Image.Image], str, Any]] = [
        ([RED], "What?", {}),
        ([WIDE, TALL], "a dog and a cat, or not?", {"temperature": 2.0, "seed": 1}),
        ([], "x", {"temperature": 2.0, "seed": 1, "max_new_tokens": 2}),
        ([TALL], "What is this?", {"temperature": 2.0, "seed": 2, "stop": ("a", "e")}),
    ]
    given: list[dict[int, str]] = [{} for _ in asked]
    jobs = []
    for (images, question, settings), answers in zip(asked, given, strict=True):
        messages = [user(f"{IMAGE_MARK}\n" * len(images) + question)]
        sampling = TextSampling.of(**settings)
        request = ChatRequest(messages=messages, images=images, sampling=sampling, count=2)

        def note(event: Any, answers: dict[int, str] = answers) -> None:
            if isinstance(event, Text):
                answers[event.index] = answers.get(event.index, "") + event.piece

        jobs.append(Job(request, note))
    queue = deque(jobs)
    desk = AnswerDesk(
        pipe,
        lambda: queue.popleft() if queue else None,
        lambda seconds: None,
        max_answers=5,
        max_tokens=10**6,
    )
    while queue or desk.is_busy:
        desk.work(0.0)
    for (images, question, settings), answers in zip(asked, given, strict=True):
        for number in range(2):
            seed = settings.get("seed", 0) + number
            expected = pipe.ask(images, question, **{**settings, "seed": seed})
            assert answers.get(number, "").strip() == expected


@pytest.mark.parametrize("backbone", TOWERS)
@pytest.mark.parametrize("mode", ["stretch", "aspect"])
def test_prompt_length_equals_the_number_of_tokens_read(
    backbone: str, mode: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "aspect" and backbone != "qwen2_5_vl":
        return  # this backbone takes square images only
    fit = ImageFitConfig(mode=mode, min_pixels=64, max_pixels=1024)
    pipe = build(backbone, "siglip2", tokenizer, question_images=fit)
    read: list[int] = []
    monkeypatch.setattr(pipe.model, "text_states", lambda ids, *_: read.append(ids.shape[1]))
    large = Image.new("RGB", (900, 300))
    turned = Image.new("RGB", (30, 12))
    turned.getexif()[0x0112] = 6  # rotated by the EXIF tag, it is 12 pixels wide
    for images in ([], [RED], [WIDE, TALL], [large, turned], [large, large]):
        messages = [user(f"{IMAGE_MARK}\n" * len(images) + "What is this?")]
        length = pipe.prompt_length(messages, [image.size for image in images])
        read.clear()
        with pytest.raises((AttributeError, TypeError)):  # the replaced `text_states` returns None
            list(pipe.stream(messages, images))
        assert read == [length]


@pytest.mark.parametrize("backbone", TOWERS)
def test_aspect_mode_requires_a_backbone_that_takes_any_shape(
    backbone: str, tokenizer: Tokenizer
) -> None:
    changes = {"question_images": ImageFitConfig(mode="aspect")}
    if backbone == "qwen2_5_vl":
        build(backbone, "siglip2", tokenizer, **changes)
        return
    with pytest.raises(ValueError, match=f"{backbone.partition(' ')[0]} takes squares"):
        build(backbone, "siglip2", tokenizer, **changes)


def test_an_image_in_aspect_mode_has_tokens_of_its_own_shape(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ImageFitConfig(mode="aspect", min_pixels=64, max_pixels=1024)
    pipe = build("qwen2_5_vl", "siglip2", tokenizer, question_images=fit)
    grids: list[Any] = []
    plain = pipe.model.backbone.image_tokens

    def watch(images: Any) -> Tensor:
        grids.extend(images.grid_thw.tolist())
        return plain(images)

    monkeypatch.setattr(pipe.model.backbone, "image_tokens", watch)
    pipe.ask([RED, WIDE, TALL], "What is this?", max_new_tokens=1)
    assert grids == [[1, 4, 4], [1, 2, 10], [1, 8, 4]]
    grids.clear()
    pipe.edit(
        WIDE, "blue", output_type="features"
    )  # resized to a square, as in the released inference
    assert grids == [[1, 4, 4]]
