"""Compares two samplers of the DiT: a plain loop and the fast path, measured in turn.

python benchmarks/sample.py [--repeats 7] [--threads 2] [--out benchmarks/results/sample.json]

Both samplers are our own code; this repository has no code of the original program. The plain loop
(`draw_plain`) runs the whole network at every step, and tests compare the fast path with
it.

Networks have random weights, because speed does not depend on weights. Each ratio is that of two
consecutive runs, so a temporary slowdown of the machine affects both.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from blip3o.flow.guidance import combine
from blip3o.flow.solver import SOLVERS
from blip3o.generate.compiled import CompiledDraw
from blip3o.generate.draw import draw, noise_levels
from blip3o.models.dit.nextdit import NextDiTConfig
from blip3o.models.generators.query_dit import QueryDiT, QueryDiTConfig, QueryPlan
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig

STEPS, GUIDANCE, CONDITION_TOKENS, CHANNELS = 30, 3.0, 64, 64
SAMPLING = SamplingConfig(num_inference_steps=STEPS)
DITS = {
    f"{name}_{grid**2}_tokens": NextDiTConfig(
        in_channels=CHANNELS,
        condition_size=width,
        hidden_size=width,
        num_layers=num_layers,
        num_heads=num_heads,
        grid=grid,
        multiple_of=32,
    )
    for name, width, num_layers, num_heads in (("256_wide", 256, 6, 8), ("1024_wide", 1024, 4, 16))
    for grid in (4, 8)  # the grids of the bundled and of the released models
}
SMALL = "256_wide_16_tokens"
BATCH = 8


def build(dit: NextDiTConfig) -> UnifiedModel:
    """Returns a tiny model with a DiT of the given size."""
    tiny = UnifiedModelConfig.tiny()
    encoder, decoder, grid = tiny.image_encoder, tiny.image_decoder, dit.grid
    generator = QueryDiTConfig(
        num_query_tokens=CONDITION_TOKENS,
        hidden_size=dit.hidden_size,
        num_layers=dit.num_layers,
        num_heads=dit.num_heads,
        multiple_of=dit.multiple_of,
    )
    config = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(
            tiny.backbone, hidden_size=dit.condition_size, image_channels=CHANNELS
        ),
        image_encoder=dataclasses.replace(
            encoder, image_px=encoder.image_px // encoder.grid * grid, hidden_size=CHANNELS
        ),
        normalizer=dataclasses.replace(tiny.normalizer, num_components=None),
        generator=generator,
        image_decoder=dataclasses.replace(
            decoder, feature_channels=CHANNELS, grid=grid, image_px=8 * grid
        ),
    )
    model = config.build().eval()
    for parameter in model.get_submodule("generator.dit").parameters():
        if parameter.ndim == 1:  # fresh gates are zero
            nn.init.normal_(parameter, std=0.1)
    return model


class Setting:
    """One network and one batch.

    Args:
        model: the network.
        num_prompts: number of conditions.
        num_images: images per condition.
        device: device of the model.
    """

    def __init__(
        self, model: UnifiedModel, num_prompts: int, num_images: int, device: torch.device
    ) -> None:
        self.model = model
        generator = torch.Generator().manual_seed(0)
        width = model.config.backbone.hidden_size
        tokens, channels = model.config.feature_shape

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        assert isinstance(model.generator, QueryDiT)
        self.plan = QueryPlan(model.generator, draw(num_prompts, CONDITION_TOKENS, width))
        self.noise = draw(num_prompts * num_images, tokens, channels)

    def run(self, sample: Callable[..., Tensor]) -> tuple[float, Tensor]:
        """Returns the seconds that a sampler takes and its features."""
        start = time.perf_counter()
        features = sample(self.plan, self.noise, GUIDANCE, SAMPLING)
        if features.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, features


@torch.no_grad()
def draw_plain(plan: QueryPlan, noise: Tensor, scale: float, sampling: SamplingConfig) -> Tensor:
    """Returns the features that `draw` returns, by one whole pass of the network a step."""
    states = plan.repeat(len(noise) // len(plan)).states
    both, sigmas = torch.cat([torch.zeros_like(states), states]), noise_levels(sampling)
    levels = sigmas.to(noise.device)

    def velocity(noisy: Tensor, step: int) -> Tensor:
        sigma = levels[step].expand(2 * len(noisy))
        return combine(plan.generator.dit.velocity(torch.cat([noisy, noisy]), sigma, both), scale)

    return SOLVERS[sampling.solver](velocity, noise, sigmas, None)


def describe(values: list[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(number, 4) for name, number in numbers.items()}


def compare(setting: Setting, fast: Callable[..., Tensor], repeats: int) -> dict[str, object]:
    """Returns the seconds of both samplers and their ratios."""
    (_, expected), (_, got) = setting.run(draw_plain), setting.run(fast)  # warm-up
    difference = float((got - expected).abs().max() / expected.abs().max())
    pairs = [(setting.run(draw_plain)[0], setting.run(fast)[0]) for _ in range(repeats)]
    return {
        "plain_seconds": describe([plain for plain, _ in pairs]),
        "fast_seconds": describe([seconds for _, seconds in pairs]),
        "plain_over_fast": describe([plain / seconds for plain, seconds in pairs]),
        "largest_relative_difference": difference,
    }


def scale(
    one: Setting, many: Setting, fast: Callable[..., Tensor], repeats: int
) -> dict[str, object]:
    """Returns images per second of a batch and of one image, and their ratio."""
    one.run(fast), many.run(fast)
    pairs = [(one.run(fast)[0], many.run(fast)[0]) for _ in range(repeats)]
    size = len(many.noise)
    return {
        "images_per_second_of_1": describe([1 / alone for alone, _ in pairs]),
        f"images_per_second_of_{size}": describe([size / batch for _, batch in pairs]),
        "ratio": describe([size * alone / batch for alone, batch in pairs]),
    }


def main() -> None:
    """Measures all settings, prints the results and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers; on CUDA also use graphs"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sample.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    models = {name: build(dit).to(device) for name, dit in DITS.items()}

    def sampler(model: UnifiedModel) -> Callable[..., Tensor]:
        return CompiledDraw(model.generator) if options.compile else draw

    speed = {}
    for name, model in models.items():
        speed[name] = compare(Setting(model, 1, 1, device), sampler(model), options.repeats)
        print(name, speed[name]["plain_over_fast"], flush=True)
    small = models[SMALL]
    one = Setting(small, 1, 1, device)
    batches = {
        "prompts": Setting(small, BATCH, 1, device),
        "images": Setting(small, 1, BATCH, device),
    }
    batching = {
        f"{BATCH}_{name}": scale(one, batch, sampler(small), options.repeats)
        for name, batch in batches.items()
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    results = {
        "command": " ".join(["python", *sys.argv]),
        "compared": {
            "plain_over_fast": "our plain loop over our fast path",
            "batching": "images a second of our fast path: a batch over one image alone",
        },
        "commit": commit.strip(),
        "machine": f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "condition_tokens": CONDITION_TOKENS,
        "dits": {name: dataclasses.asdict(dit) for name, dit in DITS.items()},
        "batch_of_1": speed,
        f"batching_of_{SMALL}": batching,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
