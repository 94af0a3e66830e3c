"""Replies of text and images in turn: cache rules, batches, limits, chains of edits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blip3o.core.errors import UsageError
from blip3o.core.types import IGNORE_LABEL, Message
from blip3o.generate.interleaved import Composer, Reply
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.backbones.ragged import RowCache
from blip3o.models.generators import GENERATORS
from blip3o.models.generators.blocks import BlockConfig
from blip3o.models.prompts import Rows
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.text.tokenizer import Tokenizer

ASK = [Message(role="user", text="draw a cat")]
RED, BLUE = (Image.new("RGB", (20, 20), color) for color in ("red", "blue"))
WRITING: Any = {"seed": 5, "temperature": 1.0, "max_new_tokens": 24}
TINY = {name: GENERATORS.get(name).tiny() for name in GENERATORS.names()}
BLOCKS = [name for name, config in TINY.items() if isinstance(config, BlockConfig)]

each_block_generator = pytest.mark.parametrize("generator_kind", BLOCKS)
each_generator = pytest.mark.parametrize("generator_kind", TINY)
each_rule = pytest.mark.parametrize("rule", ["sequential", "shared"])

MakePipe = Callable[..., Blip3oPipeline]


@pytest.fixture
def make_pipe(tiny_config: UnifiedModelConfig, tiny_tokenizer: Tokenizer) -> MakePipe:
    """Makes a pipeline whose next token is the image mark with a probability of 0.3."""

    def make(
        kind: str, *, max_positions: int = 160, draws: bool = True, **settings: Any
    ) -> Blip3oPipeline:
        generator = dataclasses.replace(TINY[kind], **settings)
        backbone = dataclasses.replace(tiny_config.backbone, max_positions=max_positions)
        config = dataclasses.replace(
            tiny_config,
            backbone=backbone,
            generator=generator,
            sampling=SamplingConfig(
                guidance_scale=2.0 if generator.is_guided else 1.0,
                num_inference_steps=3,
                num_decoder_steps=2,
            ),
        )
        torch.manual_seed(0)
        model = config.build()
        for part in (model.generator, model.image_decoder):
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.3)
        for parameter in model.backbone.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
        pipe = Blip3oPipeline(model, tiny_tokenizer)
        decoder, mark = pipe._writer.decoder, tiny_tokenizer.image_start_id
        plain = decoder.logits

        def logits(hidden: Tensor) -> Tensor:
            found = plain(hidden)
            found[:, mark] = -torch.inf
            if draws:
                found[:, mark] = found.logsumexp(-1) - 0.85
            return found

        decoder.logits = logits  # type: ignore[method-assign]
        return pipe

    return make


def pixels(reply: Reply) -> list[bytes]:
    return [image.tobytes() for image in reply.images]


class Watched:
    """Records the rows of a composer, the logits of each token and the features of each image."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[int, Any] = {}
        self.logits: list[tuple[int, Tensor]] = []
        self.features: list[Tensor] = []
        write, go_on = Composer._write, Composer._continue

        def note_write(composer: Composer, row: Any, logits: Tensor, most: int) -> None:
            self.rows[id(row)] = row
            self.logits.append((len(row.ids), logits.clone()))
            write(composer, row, logits, most)

        def note_image(composer: Composer, row: Any, clean: Tensor, *rest: Any) -> None:
            self.features.append(clean)
            go_on(composer, row, clean, *rest)

        monkeypatch.setattr(Composer, "_write", note_write)
        monkeypatch.setattr(Composer, "_continue", note_image)

    @property
    def row(self) -> Any:
        (row,) = self.rows.values()
        return row


@each_block_generator
@each_rule
def test_logits_after_images_are_those_of_a_fresh_pass_over_the_clean_row(
    make_pipe: MakePipe, monkeypatch: pytest.MonkeyPatch, generator_kind: str, rule: str
) -> None:
    pipe = make_pipe(generator_kind, positions=rule)
    watched = Watched(monkeypatch)
    reply = pipe.reply(ASK, **WRITING)
    row, model, chat = watched.row, pipe.model, pipe.chat_template
    assert len(reply.images) >= 2
    ids = torch.tensor([row.ids])
    rows = Rows(
        input_ids=ids,
        attention_mask=torch.ones_like(ids).bool(),
        places=(tuple(chat.image_places(row.ids, [IGNORE_LABEL] * len(row.ids))),),
        images=torch.zeros(len(reply.images), 4, 16),
    )
    clean = torch.cat(watched.features)
    with torch.no_grad():
        nothing = torch.zeros(len(clean), dtype=torch.bool)
        fresh = model.read_rows(rows, clean, torch.zeros(len(clean)), nothing, keep_states=True)
        assert fresh.states is not None
        expected = model.backbone.logits(fresh.states)[0]
    after = [place.start + place.length for place in rows.places[0]]
    assert {end + 1 for end in after} & {length for length, _ in watched.logits}
    for length, logits in watched.logits:
        known = logits.isfinite()
        known[pipe.tokenizer.image_start_id] = False  # `make_pipe` sets its logit
        torch.testing.assert_close(logits[known], expected[length - 1][known], rtol=0, atol=1e-4)


@each_block_generator
@each_rule
def test_the_cache_counts_text_and_patches_and_keeps_what_it_knew(
    make_pipe: MakePipe, monkeypatch: pytest.MonkeyPatch, generator_kind: str, rule: str
) -> None:
    pipe = make_pipe(generator_kind, positions=rule)
    generator, patches = pipe.model.generator, pipe.model.config.num_reserved_positions
    seen: list[tuple[RowCache, RowCache, list[Tensor]]] = []
    plan, keep = generator.plan_row, generator.keep_image
    before: list[list[Tensor]] = []

    def plan_row(backbone: Any, row: RowCache) -> Any:
        before.append([one.clone() for pair in row.key_values() for one in pair])
        return plan(backbone, row)

    def keep_image(backbone: Any, row: RowCache, clean: Tensor) -> RowCache:
        kept = keep(backbone, row, clean)
        seen.append((row.fork(), kept.fork(), before.pop(0)))
        return kept

    monkeypatch.setattr(generator, "plan_row", plan_row)
    monkeypatch.setattr(generator, "keep_image", keep_image)
    watched = Watched(monkeypatch)
    pipe.reply(ASK, **WRITING)
    assert len(seen) >= 2
    for row, kept, known in seen:
        assert kept.num_tokens == row.num_tokens + patches  # and not more, whatever the steps
        assert kept.position == row.position + (patches if rule == "sequential" else 1)
        sides = ([one for pair in cache.key_values() for one in pair] for cache in (kept, row))
        for new, old, plain in zip(*sides, known, strict=True):
            assert torch.equal(old, plain)  # drawing left no trace
            assert torch.equal(new[:, :, : row.num_tokens], old)
    row, chat = watched.row, pipe.chat_template
    places = chat.image_places(row.ids, [IGNORE_LABEL] * len(row.ids))
    text = len(row.ids) - sum(place.length for place in places)
    assert row.cache.num_tokens == text - 1 + patches * len(places)  # the last one is not read


@each_generator
def test_a_reply_is_the_same_alone_and_in_a_batch(make_pipe: MakePipe, generator_kind: str) -> None:
    pipe = make_pipe(generator_kind)
    long = [Message(role="user", text="<image> and <image>\nput both in one image, please")]
    talks: list[Any] = [
        (ASK, []),
        (long, [RED, BLUE]),
        ([Message(role="user", text="x")], []),
    ]
    together = pipe.reply_batch(talks, **WRITING)
    assert sum(len(reply.images) for reply in together) >= 2
    for talk, reply in zip(talks, together, strict=True):
        alone = pipe.reply(*talk, **WRITING)
        assert [part for part in alone.parts if isinstance(part, str)] == [
            part for part in reply.parts if isinstance(part, str)
        ]
        assert alone.reason == reply.reason
        for one, other in zip(alone.images, reply.images, strict=True):
            difference = torch.tensor(list(one.tobytes())) - torch.tensor(list(other.tobytes()))
            assert int(difference.abs().max()) <= 1


@each_generator
def test_a_seed_gives_one_reply_and_images_of_their_own_noise(
    make_pipe: MakePipe, generator_kind: str
) -> None:
    pipe = make_pipe(generator_kind)
    reply = pipe.reply(ASK, **WRITING)
    again = pipe.reply(ASK, **WRITING)
    assert reply.text == again.text
    assert pixels(reply) == pixels(again)
    assert len(set(pixels(reply))) == len(reply.images) > 1
    if generator_kind != "regression":
        other = pipe.edit_in_turn(RED, ["make it blue"], seed=6)
        assert other[0].tobytes() != pipe.edit_in_turn(RED, ["make it blue"], seed=7)[0].tobytes()


@each_generator
def test_limits_of_images_tokens_and_positions(
    make_pipe: MakePipe, monkeypatch: pytest.MonkeyPatch, generator_kind: str
) -> None:
    pipe = make_pipe(generator_kind)
    assert len(pipe.reply(ASK, **WRITING).images) > 1
    assert len(pipe.reply(ASK, **WRITING, max_images=1).images) == 1
    short = pipe.reply(ASK, max_new_tokens=1)
    assert short.reason == "length"
    narrow = make_pipe(generator_kind, max_positions=48)
    watched = Watched(monkeypatch)
    talks: list[Any] = [(ASK, [])]
    for seed in range(4):
        (reply,) = narrow.reply_batch(
            talks, max_new_tokens=500, temperature=1.0, seed=seed, max_images=50
        )
        assert reply.images
    assert max(row.cache.position for row in watched.rows.values()) in (46, 47, 48)


def test_a_reply_without_images_is_the_answer(make_pipe: MakePipe) -> None:
    pipe = make_pipe("transfusion", draws=False)
    (text,) = pipe.reply(ASK, max_new_tokens=8).parts
    assert isinstance(text, str)
    assert text.strip() == pipe.ask(None, "draw a cat", max_new_tokens=8)


@each_generator
def test_a_conversation_goes_on_after_images(make_pipe: MakePipe, generator_kind: str) -> None:
    pipe = make_pipe(generator_kind)
    first = pipe.reply(ASK, **WRITING)
    assert first.message.text.count("<image>") == len(first.images)
    talk = [*ASK, first.message, Message(role="user", text="and now?")]
    second = pipe.reply(talk, first.images, **WRITING)
    others = [Image.new("RGB", (16, 16), "green") for _ in first.images]
    changed = pipe.reply(talk, others, **WRITING)
    assert (second.text, pixels(second)) != (changed.text, pixels(changed))


@each_generator
def test_edits_in_turn_build_on_each_other(make_pipe: MakePipe, generator_kind: str) -> None:
    pipe = make_pipe(generator_kind)
    steps = ["make it blue", "add a cat"]
    images = pipe.edit_in_turn([RED, BLUE], steps, seed=1)
    assert [image.size for image in images] == [(16, 16)] * 2
    again = pipe.edit_in_turn([RED, BLUE], steps, seed=1)
    assert [one.tobytes() for one in images] == [one.tobytes() for one in again]
    other = pipe.edit_in_turn([RED, BLUE], ["make it green", "add a cat"], seed=1)
    turned = pipe.edit_in_turn([BLUE, RED], steps, seed=1)
    for changed in (other, turned):
        assert changed[0].tobytes() != images[0].tobytes()
        assert changed[1].tobytes() != images[1].tobytes()


@each_generator
def test_an_edit_may_have_several_sources(make_pipe: MakePipe, generator_kind: str) -> None:
    pipe = make_pipe(generator_kind)

    def edit(images: Any, texts: Any) -> list[bytes]:
        seeds = [torch.Generator().manual_seed(0) for _ in texts]
        return [one.tobytes() for one in pipe.edit(images, texts, generator=seeds).images]

    both, turned, one = (edit([some], ["x"]) for some in ([RED, BLUE], [BLUE, RED], [RED]))
    assert len({*both, *turned, *one}) == 3
    assert edit([RED], ["x"]) == one
    mixed = edit([[RED, BLUE], RED], ["x", "x"])
    for image, alone in zip(mixed, [*both, *one], strict=True):
        difference = torch.tensor(list(image)) - torch.tensor(list(alone))
        assert int(difference.abs().max()) <= 1


@pytest.mark.parametrize("mode", ["model", "sequential"])
@each_generator
def test_offloading_changes_no_reply(make_pipe: MakePipe, generator_kind: str, mode: str) -> None:
    pipe = make_pipe(generator_kind)
    expected = pipe.reply(ASK, **WRITING)
    if mode == "model":
        pipe.enable_model_cpu_offload("cpu")
    else:
        pipe.enable_sequential_cpu_offload("cpu")
    reply = pipe.reply(ASK, **WRITING)
    assert reply.text == expected.text
    assert pixels(reply) == pixels(expected)


def test_bad_input_ends_in_one_line(make_pipe: MakePipe) -> None:
    pipe = make_pipe("transfusion")
    mark = Message(role="user", text="<image> what?")
    with pytest.raises(UsageError, match="1 image marks in the messages for 0 images"):
        pipe.reply([mark])
    with pytest.raises(UsageError, match="the number of images must be 1 to 1000"):
        pipe.reply(ASK, max_images=0)
    with pytest.raises(UsageError, match="num_inference_steps must be 1 to 1000"):
        pipe.reply(ASK, num_inference_steps=0)
    with pytest.raises(UsageError, match="tokens; at most"):
        pipe.reply([Message(role="user", text="cat " * 200)])
    with pytest.raises(UsageError, match="the prompt is empty"):
        pipe.edit_in_turn(RED, ["make it blue", " "])
    with pytest.raises(UsageError, match="2 images for 1 instructions"):
        pipe.edit([RED, BLUE], ["x"])
    with pytest.raises(UsageError, match="an instruction has no image"):
        pipe.edit([[]], ["x"])
    system = Message(role="system", text="<image>")
    with pytest.raises(UsageError, match="in a turn of the system"):
        pipe.reply([system, *ASK], [RED])
