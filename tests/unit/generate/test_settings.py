"""Schedulers, steps and guidance of the image decoder, set by object, by call and by config."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.cli import main
from blip3o.core.errors import UsageError
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.decoders import DECODERS
from blip3o.models.unified import UnifiedModelConfig
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.folder import load_model, save_model

SWAPS = {
    "sdxl": "DEISMultistepScheduler",
    "sana": "FlowMatchEulerDiscreteScheduler",
}
CLASS = "image_decoder.scheduler._class_name"
PUBLISHED = "image_decoder.sampler=published"
STEPS = "sampling.num_decoder_steps=null"


@pytest.fixture(scope="module", params=SWAPS)
def folder(
    request: pytest.FixtureRequest,
    tiny_config: UnifiedModelConfig,
    tiny_tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    torch.manual_seed(0)
    config = dataclasses.replace(tiny_config, image_decoder=DECODERS.get(request.param).tiny())
    model = config.build()
    for parameter in model.image_decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.image_decoder.get_buffer("empty_features").normal_()
    place = tmp_path_factory.mktemp(request.param)
    save_model(model, tiny_tokenizer, place, torch.float32)
    return place


def load(folder: Path, *overrides: str) -> Blip3oPipeline:
    return Blip3oPipeline.from_pretrained(folder, device="cpu", dtype="fp32", overrides=overrides)


def draw(pipe: Blip3oPipeline, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return pipe("a red cat", generator=generator, output_type="pt", **options).images


def test_a_scheduler_is_swapped_on_the_pipeline_or_by_its_config(folder: Path) -> None:
    import diffusers

    plain = load(folder, PUBLISHED)
    first = draw(plain, num_decoder_steps=4)
    name = SWAPS[plain.image_decoder.config.kind]
    plain.image_decoder.scheduler = getattr(diffusers, name).from_config(
        plain.image_decoder.scheduler.config
    )
    swapped = draw(plain, num_decoder_steps=4)
    assert bool(swapped.isfinite().all())
    assert not torch.equal(first, swapped)
    configured = load(folder, f"{CLASS}={name}", "sampling.num_decoder_steps=4")
    assert type(configured.image_decoder.scheduler).__name__ == name
    assert torch.equal(draw(configured), swapped)


def test_one_word_brings_back_the_published_sampler(folder: Path) -> None:
    fast, published = load(folder, STEPS), load(folder, STEPS, PUBLISHED)
    samplers = fast.image_decoder.config.samplers
    for pipe, name in ((fast, "fast"), (published, "published")):
        steps = samplers[name].num_steps
        assert torch.equal(draw(pipe), draw(pipe, num_decoder_steps=steps))
    assert not torch.equal(draw(fast), draw(published))


def test_steps_and_guidance_of_a_call_are_those_of_the_config(folder: Path) -> None:
    pipe = load(folder)
    plain = draw(pipe)
    assert torch.equal(draw(pipe, num_decoder_steps=2, decoder_guidance_scale=3.0), plain)
    for options, override in (
        ({"num_decoder_steps": 5}, "sampling.num_decoder_steps=5"),
        ({"decoder_guidance_scale": 1.5}, "image_decoder.guidance_scale=1.5"),
    ):
        changed = draw(pipe, **options)
        assert not torch.equal(changed, plain)
        assert torch.equal(draw(load(folder, override)), changed)


def test_edits_and_reconstructions_accept_the_settings(tiny_folder: Path, folder: Path) -> None:
    from PIL import Image

    pipe, red = load(folder), Image.new("RGB", (16, 16), "red")
    for run in (
        lambda **options: pipe.edit(red, "blue", **options),
        lambda **options: pipe.reconstruct(red, **options),
    ):
        options = [{}, {"num_decoder_steps": 5}, {"decoder_guidance_scale": 9.0}]
        one, two, three = (
            run(generator=torch.Generator().manual_seed(0), output_type="pt", **more).images
            for more in options
        )
        assert not torch.equal(one, two)
        assert not torch.equal(one, three)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_decoder_steps": 0}, "num_decoder_steps must be 1 to 1000, got 0"),
        ({"decoder_guidance_scale": 0.5}, "decoder_guidance_scale must be 1 to 100, got 0.5"),
    ],
)
def test_numbers_out_of_range_are_refused_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    pipe = load(folder)
    monkeypatch.setattr(pipe.model, "plan", None)
    with pytest.raises(UsageError, match=message):
        pipe("a cat", **options)


def test_guidance_of_a_decoder_without_any_is_refused(tiny_pipe: Blip3oPipeline) -> None:
    with pytest.raises(UsageError, match="the image decoder 'pocket' is not guided"):
        tiny_pipe("a cat", decoder_guidance_scale=2.0)


@pytest.mark.parametrize("name", ["negative_prompt", "num_inference_step", "height"])
def test_unknown_arguments_are_never_ignored(tiny_pipe: Blip3oPipeline, name: str) -> None:
    options: dict[str, Any] = {name: "blurry"}
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        tiny_pipe("a cat", **options)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.num_decoder_step=5", "did you mean sampling.num_decoder_steps"),
        ("sampling.num_decoder_steps", "not of the form path.to.field=value"),
        (
            "generator.num_query_tokens=9",
            r"num_query_tokens=9.*query_tokens.weight \[4, 16\] instead of \[9",
        ),
        (f"{CLASS}=UNet2DModel", "diffusers has no scheduler 'UNet2DModel'"),
        ("image_decoder.grid=3", "image_decoder.grid is 3"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(folder: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_model(folder, overrides=[override])
    assert "\n" not in str(caught.value)


def test_the_command_line_sets_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(name: str, *words: str) -> bytes:
        out = tmp_path / name
        common = ["--model", str(folder), "--dtype", "fp32", "--out", str(out)]
        assert main(["generate", "a cat", *common, *words]) == 0
        return (out / "0000-0.png").read_bytes()

    kind = load(folder).image_decoder.config.kind
    steps = ["--set", "sampling.num_decoder_steps=4"]
    plain = generate("plain", *steps)
    assert generate("again", *steps) == plain
    assert generate("swapped", *steps, "--set", f"{CLASS}={SWAPS[kind]}") != plain
    capsys.readouterr()
    assert main(["generate", "a cat", "--model", str(folder), "--set", "sampling.steps=4"]) == 2
    assert "unknown config key 'sampling.steps'" in capsys.readouterr().err
