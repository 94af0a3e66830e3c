"""Offloading, placement and precision: same results, and only used weights on the device."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blip3o.core.errors import UsageError
from blip3o.generate import offload as module
from blip3o.generate.decoding import RowDecoder
from blip3o.generate.offload import COMPONENTS, groups_of, residents_of
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.placement import connect
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.models.dit.nextdit import NextDiTConfig
from blip3o.models.generators.query_dit import QueryDiT
from blip3o.nn.blocks import repeated_blocks
from blip3o.text.tokenizer import Tokenizer

RED = Image.new("RGB", (24, 16), "red")
by_block = pytest.mark.parametrize("by_block", [False, True], ids=["model", "sequential"])


@pytest.fixture(params=["own tower", "features"])
def pipe(
    request: pytest.FixtureRequest, tiny_pipe: Blip3oPipeline, tiny_tokenizer: Tokenizer
) -> Blip3oPipeline:
    """A pipeline that a test may change: the tiny one, or one shaped like the released models."""
    if request.param == "features":
        return Blip3oPipeline(copy.deepcopy(tiny_pipe.model), tiny_tokenizer)
    config = tiny_pipe.model.config
    backbone = dataclasses.replace(
        Qwen2_5VLBackboneConfig.tiny(),
        image_token_id=tiny_tokenizer.image_pad_id,
        tie_word_embeddings=True,
    )
    decoder = dataclasses.replace(SdxlDecoderConfig.tiny(), empty_prompt=" ")
    torch.manual_seed(1)
    model = dataclasses.replace(config, backbone=backbone, image_decoder=decoder).build()
    for part in ("backbone", "generator.dit", "image_decoder.unet"):
        for parameter in model.get_submodule(part).parameters():
            nn.init.normal_(parameter, std=0.3)
    return Blip3oPipeline(model, tiny_tokenizer)


def results(pipe: Blip3oPipeline) -> list[Any]:
    """Returns the results of every method of a pipeline."""
    pipe._empty_features = None

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    return [
        pipe(["a red cat", "x"], generator=seeded(), output_type="pt").images,
        pipe.edit(RED, "make it blue", generator=seeded(), output_type="pt").images,
        pipe.reconstruct(RED, generator=seeded(), output_type="pt").images,
        pipe.ask(RED, "What is this?"),
        pipe.answer_batch([RED], ["a dog"], max_new_tokens=5),
        pipe.encode([RED]),
    ]


def assert_same(ones: list[Any], others: list[Any]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def text_logits(pipe: Blip3oPipeline) -> Tensor:
    """Returns the logits of a prompt and of six given tokens after it, [7, V]."""
    decoder = RowDecoder(pipe.model)
    prompt = decoder.read(range(20, 32), None)
    row, seen = prompt.row.fork(), [prompt.logits]
    seen += [decoder.advance([row], [token])[0] for token in range(40, 46)]
    return torch.stack(seen)


def resident(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if not p.is_meta}


def watch(pipe: Blip3oPipeline) -> dict[str, list[set[str]]]:
    """Returns lists that record which weights are on the device whenever a layer runs."""
    seen: dict[str, list[set[str]]] = {name: [] for name in COMPONENTS}
    slots = [
        (f"{where}.{name}", module, name)
        for where, module in pipe.model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    ]

    def look(component: str) -> None:
        there = {path for path, module, name in slots if not getattr(module, name).is_meta}
        seen[component].append(there)

    for name in COMPONENTS:
        stay = residents_of(getattr(pipe.model, name))
        for layer in getattr(pipe.model, name).modules():
            if layer not in stay and any(True for _ in layer.parameters(recurse=False)):
                layer.register_forward_pre_hook(lambda *_, n=name: look(n))
    return seen


@by_block
def test_offload_changes_no_bit_and_keeps_only_what_is_in_use(
    pipe: Blip3oPipeline, by_block: bool
) -> None:
    plain = results(pipe)
    every = resident(pipe.model)
    before = dict(pipe.model.named_parameters())
    seen = watch(pipe)
    enable = pipe.enable_sequential_cpu_offload if by_block else pipe.enable_model_cpu_offload
    enable("cpu")
    assert resident(pipe.model) == {"generator.query_tokens.weight"}
    assert_same(results(pipe), plain)
    for name in COMPONENTS:
        own = {other for other in every if other.startswith(f"{name}.")}
        assert seen[name], name
        for there in seen[name]:
            assert there | own == own | {"generator.query_tokens.weight"}  # no other component
            if not by_block:
                assert there >= own
        if by_block and len(repeated_blocks(getattr(pipe.model, name))) > 1:
            assert not any(there >= own for there in seen[name])
    if by_block:  # never two blocks together
        num_blocks = len(repeated_blocks(pipe.model.generator))
        blocks = [f"generator.dit.layers.{k}." for k in range(num_blocks)]
        counts = {
            sum(any(n.startswith(b) for n in there) for b in blocks) for there in seen["generator"]
        }
        assert counts == {0, 1}
    pipe.to("cpu")
    assert {n: p is before[n] for n, p in pipe.model.named_parameters()} == dict.fromkeys(
        every, True
    )
    assert_same(results(pipe), plain)


@by_block
def test_offload_can_be_changed_repeatedly(pipe: Blip3oPipeline, by_block: bool) -> None:
    """Several modes in turn, with errors between them, lose no weights."""
    plain = results(pipe)
    for _ in range(2):
        pipe.enable_model_cpu_offload("cpu")
        pipe.enable_sequential_cpu_offload("cpu")
    with pytest.raises(ValueError, match="placeholders"):
        pipe.model.text_states(
            torch.tensor([[pipe.tokenizer.image_pad_id]]), torch.ones(1, 1, dtype=torch.bool)
        )
    assert_same(results(pipe), plain)


@by_block
def test_a_vae_that_leaves_fp16_does_so_where_it_is_offloaded(
    pipe: Blip3oPipeline, by_block: bool
) -> None:
    def draw() -> Tensor:
        noise = torch.Generator().manual_seed(0)
        return pipe.reconstruct(RED, generator=noise, output_type="pt").images

    pipe.to(dtype="fp16")
    plain = draw()
    pipe.to(dtype="fp16")  # the VAE, too
    enable = pipe.enable_sequential_cpu_offload if by_block else pipe.enable_model_cpu_offload
    enable("cpu")
    for _ in range(2):
        assert torch.equal(draw(), plain)


@by_block
@pytest.mark.parametrize("name", ["norm_out.linear_2.weight", "layers.1.ffn_norm2.weight"])
def test_weights_that_could_not_be_fetched_are_fetched_the_next_time(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch, by_block: bool, name: str
) -> None:
    """An interrupted copy, or a device without memory, leaves no component half on the device."""
    pipe = Blip3oPipeline(copy.deepcopy(tiny_pipe.model), tiny_pipe.tokenizer)
    kept, whole = pipe.model.get_parameter(f"generator.dit.{name}"), module._on

    def draw() -> Tensor:
        return pipe("a cat", generator=torch.Generator().manual_seed(0), output_type="pt").images

    def interrupted(parameter: nn.Parameter, device: torch.device, dtype: Any) -> nn.Parameter:
        if parameter is kept and device.type != "meta":
            raise KeyboardInterrupt
        return whole(parameter, device, dtype)

    plain = draw()
    enable = pipe.enable_sequential_cpu_offload if by_block else pipe.enable_model_cpu_offload
    enable("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_on", interrupted)
        with pytest.raises(KeyboardInterrupt):
            draw()
    gone = "generator.dit." + ("layers." if by_block and name.startswith("layers.") else "")
    assert not any(there.startswith(gone) for there in resident(pipe.model))
    assert torch.equal(draw(), plain)


def test_blocks_are_the_innermost_repeated_modules() -> None:
    with torch.device("meta"):
        dit = NextDiTConfig.tiny().build()
        decoder = SdxlDecoderConfig.tiny().build()
    assert repeated_blocks(dit) == list(dit.layers)
    assert set(decoder.layers) <= set(repeated_blocks(decoder))
    for component in (dit, decoder):
        groups = groups_of(component, by_block=True)
        modules = [module for group in groups for module in group]
        assert len(modules) == len(set(modules)) == len(list(component.modules()))
        assert groups_of(component, by_block=False) == [list(component.modules())]


def test_tensors_are_moved_to_a_component_and_back(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device is the second device: only tensors that were moved are on it."""
    model = copy.deepcopy(tiny_pipe.model)
    cpu, meta = torch.device("cpu"), torch.device("meta")
    undo = connect(model, dict.fromkeys(COMPONENTS, cpu) | {"backbone": meta})
    features = model.image_encoder(torch.zeros(1, 3, 16, 16))
    assert features.device == meta  # results go to the backbone's device
    for one in undo:
        one()
    model.generator.to(meta)
    arrived: list[torch.device] = []
    assert isinstance(model.generator, QueryDiT)
    plain = model.generator.velocity

    def velocity(noisy: Tensor, sigma: Tensor, states: Tensor, *rest: Any) -> None:
        arrived.extend(t.device for t in (noisy, sigma, states, rest[-1]))
        plain(noisy, sigma, states, *rest)

    monkeypatch.setattr(model.generator, "velocity", velocity)
    connect(model, dict.fromkeys(COMPONENTS, cpu) | {"generator": meta})
    size = model.config.num_reserved_positions, model.config.backbone.hidden_size
    noisy = torch.zeros(1, *model.config.feature_shape)
    model.generator.velocity(noisy, torch.ones(1), torch.zeros(1, *size), None, noisy)
    assert arrived == [meta] * 4


def test_placed_on_one_device_nothing_changes(pipe: Blip3oPipeline) -> None:
    plain = results(pipe)
    assert pipe.place({"generator": "cpu", "image_decoder": "cpu"}) is pipe
    assert_same(results(pipe), plain)


@pytest.mark.gpu
@by_block
def test_offload_to_a_gpu_equals_the_gpu(pipe: Blip3oPipeline, by_block: bool) -> None:
    plain = results(pipe.to("cuda"))
    enable = pipe.enable_sequential_cpu_offload if by_block else pipe.enable_model_cpu_offload
    enable("cuda")
    assert_same(results(pipe), plain)
    pipe.place({"generator": "cpu", "image_decoder": "cpu"})
    for one, other in zip(results(pipe), plain, strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=5e-2)


def test_to_changes_the_stored_types_only(pipe: Blip3oPipeline) -> None:
    kinds = {name: b.dtype for name, b in pipe.model.named_buffers()}
    stored = pipe.model.state_dict().keys()
    assert pipe.to(dtype="bfloat16") is pipe
    assert {p.dtype for p in pipe.model.parameters()} == {torch.bfloat16}
    for name, buffer in pipe.model.named_buffers():
        if name not in stored:  # rotary frequencies
            assert buffer.dtype == kinds[name]
    assert pipe.dtype == torch.bfloat16
    features = pipe("a red cat", output_type="features").images
    assert features.dtype == torch.bfloat16
    assert pipe.to("cpu", torch.float32).dtype == torch.float32


@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
@pytest.mark.parametrize(
    ("quantize", "dtype"),
    [(None, "float32"), (None, "bf16"), ("int8", "bf16"), ("int4", "float32")],
)
def test_models_load_in_every_form(
    tiny_folder: Path, quantize: str | None, offload: str, dtype: Any
) -> None:
    """Offloading changes no bit of images and features; text has another pass, and its rounding.

    With bf16, a token may therefore differ where two are equally likely, so logits are compared.
    """
    load = Blip3oPipeline.from_pretrained
    options = {"device": "cpu", "dtype": dtype, "quantize": quantize}
    plain, pipe = load(tiny_folder, **options), load(tiny_folder, **options, offload=offload)
    assert pipe.dtype == {"float32": torch.float32, "bf16": torch.bfloat16}[dtype]
    ones, others = results(pipe), results(plain)
    if offload != "none" and dtype == "bf16":
        ones, others = (
            [one for one in found if isinstance(one, Tensor)] for found in (ones, others)
        )
    assert_same(ones, others)
    found, expected = text_logits(pipe), text_logits(plain)
    if offload == "none":
        assert torch.equal(found, expected)
    exact = text_logits(load(tiny_folder, **{**options, "dtype": "float32"}))
    real = exact.isfinite()  # without the placeholder
    error, allowed = ((one.float() - exact)[real].std() for one in (found, expected))
    assert error <= 2 * allowed + 1e-5 * exact[real].std()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "fp4"}, "unknown quantization 'fp4'"),
        ({"offload": "disk"}, "unknown offload 'disk'; known: model, none, sequential"),
        ({"placement": {"unet": "cpu"}}, "unknown component 'unet'; "),
        ({"placement": {"generator": "cuda:77"}}, "no device 'cuda:77'"),
        ({"placement": {"generator": "gpu"}}, "unknown device 'gpu'"),
        ({"placement": {"generator": "cpu"}, "offload": "model"}, "either offloaded or placed"),
        ({"dtype": "float64"}, "unknown precision 'float64'"),
        ({"device": "cuda:77", "offload": "model"}, "no device 'cuda:77'"),
    ],
)
def test_impossible_placements_are_refused(
    tiny_folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Blip3oPipeline.from_pretrained(tiny_folder, **options)


def test_refusals_leave_the_pipeline_as_it_was(pipe: Blip3oPipeline) -> None:
    plain = results(pipe)
    pipe.enable_model_cpu_offload("cpu")
    for refused in (
        lambda: pipe.enable_model_cpu_offload("cuda:77"),
        lambda: pipe.place({"vae": "cpu"}),
        lambda: pipe.to("cpu", "int8"),
    ):
        with pytest.raises(UsageError):
            refused()
    assert len(resident(pipe.model)) < len(list(pipe.model.parameters()))
    assert_same(results(pipe), plain)
