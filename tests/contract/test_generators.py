"""The contract of every form of every generator, tested by code that works with any of them.

Sizes are those of `tiny()`. The second generator of `conftest.py` is held to it as well.
"""

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.config import evolve, from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.core.types import Batch, Message
from blip3o.doctor.memory import activation_bytes
from blip3o.flow.sigmas import UniformSigmas
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.generators import GENERATORS
from blip3o.models.generators.plan import GeneratorConfig, Plan, RowOutput, join_plans
from blip3o.models.prompts import Prompts, Rows
from blip3o.models.unified import SamplingConfig, UnifiedModel
from blip3o.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from blip3o.serve.images import ImageMaker
from blip3o.serve.jobs import ImageRequest, Job, Row
from blip3o.text.tokenizer import Tokenizer
from blip3o.train.adapters import add_adapters
from blip3o.train.config import LoraConfig, OptimizerConfig, TrainConfig
from blip3o.train.model_setup import apply_switches
from blip3o.weights.folder import load_model, save_model

TEXTS = ("a red cat", "a dog and a cat", "x", "a dog")
SIZE = (4, 8)
"""Tokens and channels of the tiny model's features."""


@pytest.fixture
def pipe(model: UnifiedModel, tokenizer: Tokenizer) -> Blip3oPipeline:
    return Blip3oPipeline(model, tokenizer)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BATCH = Batch(
    task="text_to_image",
    indices=torch.arange(3),
    epochs=torch.zeros(3, dtype=torch.int64),
    input_ids=torch.randint(10, 290, (3, 6), generator=torch.Generator().manual_seed(0)),
    attention_mask=torch.tensor([[True] * 6, [False] * 2 + [True] * 4, [True] * 6]),
    target_features=random(3, 4, 16, seed=5),
)
TRAIN = TrainConfig(
    steps=1,
    global_batch_size=1,
    micro_batch_size=1,
    trainable=("backbone", "generator"),
    optimizer=OptimizerConfig(lr=1.0),
)


def plan_of(pipe: Blip3oPipeline, *texts: str) -> Plan:
    chat = pipe.chat_template
    return pipe.plan([chat.image_prompt(chat.generate_messages(text)) for text in texts])


def near(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * scale)


def test_config_round_trips(generator_config: GeneratorConfig) -> None:
    kind = type(generator_config)
    assert from_dict(kind, to_dict(generator_config)) == generator_config
    assert GENERATORS.get(generator_config.kind) is kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_type_follow_the_features(pipe: Blip3oPipeline, dtype: torch.dtype) -> None:
    pipe.model.to(dtype)
    noisy = random(2, *SIZE).to(dtype)
    velocity = plan_of(pipe, *TEXTS[:2]).velocity(noisy, torch.tensor([0.2, 0.9]))
    assert velocity.shape == noisy.shape
    assert velocity.dtype == dtype
    assert bool(velocity.isfinite().all())


def test_builds_on_the_meta_device(model: UnifiedModel) -> None:
    with torch.device("meta"):
        sketch = model.config.build()
    assert all(tensor.is_meta for tensor in sketch.generator.parameters())
    assert sketch.state_dict().keys() == model.state_dict().keys()


def test_its_memory_is_counted_before_it_exists(model: UnifiedModel) -> None:
    with torch.device("meta"):
        empty = model.config.build()
    assert activation_bytes(empty, "generator") > 0


def test_gradient_reaches_every_weight_of_the_generator(pipe: Blip3oPipeline) -> None:
    model = pipe.model
    model.backbone.requires_grad_(False)
    row = pipe.tokenizer.encode("a red cat")
    ids = torch.tensor([row, row])
    prompts = Prompts(
        input_ids=ids,
        attention_mask=torch.ones_like(ids).bool(),
        reference=random(2, *SIZE, seed=3) if model.config.generator.takes_reference else None,
    )
    model.plan(prompts).velocity(
        random(2, *SIZE), torch.tensor([0.3, 0.8])
    ).square().sum().backward()
    for name, parameter in model.generator.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(pipe: Blip3oPipeline) -> None:
    noisy, sigma = random(4, *SIZE), torch.tensor([0.1, 0.4, 0.7, 1.0])
    together = plan_of(pipe, *TEXTS).velocity(noisy, sigma)
    for row, text in enumerate(TEXTS):
        one = slice(row, row + 1)
        near(plan_of(pipe, text).velocity(noisy[one], sigma[one]), together[one])


@torch.no_grad()
def test_plans_can_be_joined_selected_and_repeated(pipe: Blip3oPipeline) -> None:
    noisy, sigma = random(4, *SIZE), torch.tensor([0.1, 0.4, 0.7, 1.0])
    whole = plan_of(pipe, *TEXTS)
    joined = join_plans([plan_of(pipe, text) for text in TEXTS])
    assert len(joined) == len(whole) == 4
    near(joined.velocity(noisy, sigma), whole.velocity(noisy, sigma))
    turned = torch.tensor([2, 0, 3, 1])
    near(
        whole.select(turned).velocity(noisy[turned], sigma[turned]),
        whole.velocity(noisy, sigma)[turned],
    )
    twice = plan_of(pipe, *TEXTS[:2]).repeat(2)
    near(
        twice.velocity(noisy, sigma),
        whole.select(torch.tensor([0, 0, 1, 1])).velocity(noisy, sigma),
    )
    same = whole.with_tensors(whole.tensors())
    assert torch.equal(same.velocity(noisy, sigma), whole.velocity(noisy, sigma))


@torch.no_grad()
def test_the_empty_prompt_is_the_same_for_all_prompts(pipe: Blip3oPipeline) -> None:
    noisy = random(1, *SIZE).repeat(4, 1, 1)
    plan, sigma = plan_of(pipe, *TEXTS), torch.full((4,), 0.6)
    whole, null = plan.velocity(noisy, sigma), plan.null().velocity(noisy, sigma)
    for row in range(4):
        assert not torch.allclose(whole[row], null[row], atol=1e-3)
    dropped = plan.dropped(torch.tensor([False, True, False, True])).velocity(noisy, sigma)
    near(dropped, torch.stack([whole[0], null[1], whole[2], null[3]]))


@torch.no_grad()
@pytest.mark.parametrize("is_guided", [False, True])
def test_the_fast_path_equals_the_plain_path(pipe: Blip3oPipeline, is_guided: bool) -> None:
    plan, sigmas = plan_of(pipe, *TEXTS[:2]), torch.tensor([1.0, 0.4])
    noisy = random(4, *SIZE)
    options: dict[str, Any] = {"num_images": 2, "is_guided": is_guided}
    fast, plain = plan.sampling(sigmas, **options), Plan.sampling(plan, sigmas, **options)
    for step in range(2):
        near(fast.velocity(noisy, step), plain.velocity(noisy, step))


@pytest.mark.compile
@torch.no_grad()
def test_compiled_sampling_draws_the_same(pipe: Blip3oPipeline) -> None:
    plan, sigmas = plan_of(pipe, *TEXTS[:2]), torch.tensor([1.0, 0.4])
    noisy, plain = random(2, *SIZE), Plan.sampling(plan, sigmas, is_guided=True)
    pipe.model.generator.compile_sampling()
    near(plan.sampling(sigmas, is_guided=True).velocity(noisy, 1), plain.velocity(noisy, 1))


@pytest.mark.compile
def test_compiled_training_gives_the_same_gradients(pipe: Blip3oPipeline) -> None:
    found = []
    for is_compiled in (False, True):
        model = copy.deepcopy(pipe.model).train()
        if is_compiled:
            for module in model.compile_targets():
                module.compile(backend="aot_eager")
        ids = torch.tensor([pipe.tokenizer.encode("a red cat")] * 2)
        prompts = Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool())
        model.plan(prompts).velocity(
            random(2, *SIZE), torch.tensor([0.3, 0.8])
        ).square().sum().backward()
        grads = [one.grad for one in model.parameters()]
        found.append([grad for grad in grads if grad is not None and float(grad.norm()) > 1e-4])
    assert len(found[0]) == len(found[1]) > 0
    for ours, expected in zip(found[1], found[0], strict=True):
        near(ours, expected, 1e-4)


def test_it_copies(model: UnifiedModel, tokenizer: Tokenizer) -> None:
    noisy, sigma = random(1, *SIZE), torch.ones(1)
    velocities = [
        plan_of(Blip3oPipeline(one, tokenizer), "x").velocity(noisy, sigma)
        for one in (model, copy.deepcopy(model))
    ]
    assert torch.equal(*velocities)


def test_guidance_is_refused_in_one_line_where_it_has_no_meaning(pipe: Blip3oPipeline) -> None:
    if pipe.model.config.generator.is_guided:
        pipe("x", guidance_scale=3.0, output_type="features")
        return
    with pytest.raises(UsageError, match=r"has no guidance: guidance_scale must be 1, got 3\.0"):
        pipe("x", guidance_scale=3.0)
    with pytest.raises(ValueError, match=r"has no guidance; set sampling\.guidance_scale to 1"):
        dataclasses.replace(pipe.model.config, sampling=SamplingConfig(guidance_scale=3.0))


def have_fallen(losses: Sequence[float]) -> bool:
    """Returns whether the last ten losses are well below the first ten."""
    # The first step alone may remove most of the loss; losses of the regression vary by far.
    return sum(losses[-10:]) < 0.7 * max(sum(losses[:10]), 10 * losses[0])


def test_flow_matching_trains_it(model: UnifiedModel) -> None:
    for part in (model.backbone, model.image_encoder, model.image_decoder):
        part.requires_grad_(False)
    objective = FlowMatchingConfig(sigmas=UniformSigmas(), draws=4).build(model.config)
    assert isinstance(objective, FlowMatching)
    optimizer = torch.optim.AdamW(model.generator.parameters(), lr=2e-2)
    losses: list[float] = []
    while len(losses) < 20 or (len(losses) < 60 and not have_fallen(losses)):
        optimizer.zero_grad()
        loss = objective(model, BATCH, len(losses)).loss_sum
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert have_fallen(losses)


def gradients(model: UnifiedModel) -> dict[str, Tensor]:
    """Returns the gradients of the flow matching loss, without those that are only rounding."""
    sigmas = UniformSigmas(shift=4.0)  # the loss of `regression` grows without limit at low levels
    objective = FlowMatchingConfig(sigmas=sigmas, condition_dropout=0.5).build(model.config)
    model.zero_grad()
    objective(model, BATCH, 1).loss_sum.backward()
    grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    most = max(float(grad.abs().max()) for grad in grads.values())
    return {name: grad.clone() for name, grad in grads.items() if grad.abs().max() > 1e-4 * most}


@pytest.mark.parametrize("switch", ["activation_checkpointing", "padding_free"])
def test_switches_of_training_change_no_gradient(model: UnifiedModel, switch: str) -> None:
    model.image_encoder.requires_grad_(False)
    expected = gradients(model)
    apply_switches(model, evolve(TRAIN, {switch: True}))
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert any(name.startswith("backbone.") for name in found)
    for name, gradient in found.items():
        near(gradient, expected[name], 1e-3)


def test_adapters_fit_it(model: UnifiedModel) -> None:
    pytest.importorskip("peft")
    noisy, sigma = random(3, *SIZE), torch.tensor([0.3, 0.6, 0.8])
    prompts = Prompts(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask)
    before = model.plan(prompts).velocity(noisy, sigma).detach()
    adapter = {"trainable": ("generator",), "adapter": LoraConfig(rank=2)}
    add_adapters(model, evolve(TRAIN, adapter))
    after = model.plan(prompts).velocity(noisy, sigma)
    near(after.detach(), before)
    after.square().sum().backward()
    learned = {
        name
        for name, one in model.named_parameters()
        if "lora_B" in name and one.grad is not None and float(one.grad.abs().sum()) > 0
    }
    adapted = {name for name, _ in model.named_parameters() if "lora_B" in name}
    unused = {name for name in adapted if ".reference_embedder." in name}  # nothing is edited
    assert learned == adapted - unused
    assert all(name.startswith("generator.") for name in learned)
    assert learned


def talk(*parts: str) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    return tuple(Message(role=roles[k % 2], text=text) for k, text in enumerate(parts))


TALKS = (
    talk("draw a cat", "here: <image>", "now blue", "<image> it is blue"),
    talk("<image>\nmake it red", "<image>"),
    talk("<image> and <image>\nput both in one", "<image>", "add a dog", "<image>"),
)


def read(pipe: Blip3oPipeline, talks: Sequence[tuple[Message, ...]], **changes: Any) -> RowOutput:
    """Reads rows; image k of the talks is random image k, whatever the other talks are."""
    rows = [pipe.chat_template.conversation(one, draws=True) for one in talks]
    longest = max(len(ids) for ids, _ in rows)
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]).bool()
    places = tuple(tuple(pipe.chat_template.image_places(*row)) for row in rows)
    known = {one: 10 * number for number, one in enumerate(TALKS)}
    seeds = [
        known.get(one, changes.get("first", 90)) + k
        for one, row in zip(talks, places, strict=True)
        for k in range(len(row))
    ]
    read = Rows(
        input_ids=padded,
        attention_mask=mask,
        places=places,
        images=torch.stack([random(4, 16, seed=seed) for seed in seeds]),
    )
    drawn = [
        seed for seed, one in zip(seeds, itertools.chain(*places), strict=True) if one.is_drawn
    ]
    noisy = torch.stack([random(*SIZE, seed=100 + seed) for seed in drawn])
    sigma = torch.tensor([0.1 + 0.03 * (seed % 20) for seed in drawn])
    return pipe.model.read_rows(
        read,
        changes.get("noisy", lambda one: one)(noisy),
        sigma,
        changes.get("dropped", torch.zeros(len(drawn), dtype=torch.bool)),
        keep_states=True,
    )


@torch.no_grad()
def test_rows_of_text_and_images_do_not_depend_on_their_batch(pipe: Blip3oPipeline) -> None:
    together = read(pipe, TALKS)
    assert together.states is not None
    at = 0
    for row, one in enumerate(TALKS):
        alone = read(pipe, [one])
        assert alone.states is not None
        near(alone.velocity, together.velocity[at : at + len(alone.velocity)])
        at += len(alone.velocity)
        _, labels = pipe.chat_template.conversation(one, draws=True)
        asked = [place - 1 for place, label in enumerate(labels) if label >= 0]
        near(alone.states[0, asked], together.states[row, asked])
    assert at == len(together.velocity) == 5


@torch.no_grad()
def test_an_image_of_a_row_sees_all_before_it_and_nothing_after_it(pipe: Blip3oPipeline) -> None:
    plain = read(pipe, TALKS[:1]).velocity
    other_words = talk("draw a cat", "here: <image>", "now red!", "<image> it is blue")
    words = read(pipe, [other_words], first=0).velocity
    second = torch.tensor([0.0, 1.0])[:, None, None]
    image = read(pipe, TALKS[:1], noisy=lambda noisy: noisy + second).velocity
    for changed in (words, image):
        near(changed[0], plain[0])
        assert not torch.allclose(changed[1], plain[1], atol=1e-4)
    dropped = read(pipe, TALKS[:1], dropped=torch.tensor([False, True])).velocity
    near(dropped[0], plain[0])
    assert not torch.allclose(dropped[1], plain[1], atol=1e-4)


@torch.no_grad()
def test_the_first_image_of_a_row_is_that_of_its_prompt(pipe: Blip3oPipeline) -> None:
    """Training on a row and drawing from a prompt are one computation."""
    one = TALKS[0]
    ids, labels = pipe.chat_template.conversation(one, draws=True)
    first = pipe.chat_template.image_places(ids, labels)[0]
    plan = pipe.plan([ids[: first.start]])
    velocity = plan.velocity(random(1, *SIZE, seed=100), torch.tensor([0.1]))
    near(read(pipe, [one]).velocity[:1], velocity)


def test_gradient_of_the_second_image_reaches_the_first_words(pipe: Blip3oPipeline) -> None:
    output = read(pipe, TALKS[:1])
    output.velocity[1].square().sum().backward()
    gradient = pipe.model.backbone.decoder.embed_tokens.weight.grad
    assert gradient is not None
    ids, labels = pipe.chat_template.conversation(TALKS[0], draws=True)
    first = pipe.chat_template.image_places(ids, labels)[0]
    assert all(float(gradient[one].abs().sum()) > 0 for one in ids[: first.start])


def test_images_are_drawn_in_batches_and_alone(pipe: Blip3oPipeline) -> None:
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    together = pipe(TEXTS, generator=seeds, output_type="pt").images
    for row, text in enumerate(TEXTS):
        alone = pipe(text, generator=torch.Generator().manual_seed(row), output_type="pt").images
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-3)
    (edited,) = pipe.edit(Image.new("RGB", (20, 30), "red"), "x", generator=seeds[0]).images
    assert edited.size == (16, 16)


def test_a_folder_keeps_it(pipe: Blip3oPipeline, tmp_path: Path) -> None:
    save_model(pipe.model, pipe.tokenizer, tmp_path / "m", torch.float32)
    loaded = load_model(tmp_path / "m")
    again = Blip3oPipeline(loaded.model, loaded.tokenizer)
    images = [
        one(TEXTS[0], generator=torch.Generator().manual_seed(0), output_type="pt").images
        for one in (pipe, again)
    ]
    assert torch.equal(*images)


def test_a_server_batches_it(pipe: Blip3oPipeline) -> None:
    maker, rows = ImageMaker(pipe, 4), []
    for seed, text in enumerate(TEXTS):
        messages = pipe.chat_template.generate_messages(text)
        request = ImageRequest(
            kind="generate",
            prompt=pipe.chat_template.image_prompt(messages),
            seed=seed,
            num_inference_steps=3,
            guidance_scale=pipe.model.config.sampling.guidance_scale,
        )
        rows.append(Row(Job(request, lambda event: None), request, 0))
    together = [image.tobytes() for image in maker.make(rows)]
    assert together == [maker.make([row])[0].tobytes() for row in rows]


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_offloading_changes_nothing(pipe: Blip3oPipeline, mode: str) -> None:
    def run() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(TEXTS[0], generator=generator, output_type="pt").images

    expected = run()
    if mode == "model":
        pipe.enable_model_cpu_offload("cpu")
    else:
        pipe.enable_sequential_cpu_offload("cpu")
    assert any(parameter.is_meta for parameter in pipe.model.parameters())
    assert torch.equal(run(), expected)
    assert torch.equal(run(), expected)
