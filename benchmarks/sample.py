"""Compares the fast sampler of the DiT with a plain loop, and batches with single images.

The plain loop runs the whole network at every step. Both are our own code; this repository has no
code of the original program. Networks have random weights, because speed does not depend on
weights. On a CUDA device the compiled sampler, which uses graphs, is measured as well.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from measure import Case, CaseFunction, Options, main
from torch import Tensor, nn

from blip3o.flow.guidance import combine
from blip3o.flow.solver import SOLVERS
from blip3o.generate.compiled import CompiledDraw
from blip3o.generate.draw import draw, noise_levels
from blip3o.models.generators.plan import GeneratorConfig
from blip3o.models.generators.query_dit import QueryDiT, QueryDiTConfig, QueryPlan
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig

STEPS, GUIDANCE, CONDITION_TOKENS, CHANNELS = 30, 3.0, 64, 64
TOLERANCE = 1e-5
BATCH = 8


def build(width: int, grid: int, generator: GeneratorConfig, device: torch.device) -> UnifiedModel:
    """Returns a model with fresh weights in which only backbone and generator are not tiny.

    Args:
        width: width of the backbone, whose heads have 64 values.
        grid: side of the image in tokens.
        generator: the generator.
        device: device of the model.
    """
    torch.manual_seed(0)
    tiny = UnifiedModelConfig.tiny()
    encoder, num_heads = tiny.image_encoder, max(1, width // 64)
    config = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(
            tiny.backbone,
            hidden_size=width,
            intermediate_size=3 * width,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=64,
            image_channels=CHANNELS,
        ),
        image_encoder=dataclasses.replace(
            encoder, image_px=encoder.image_px // encoder.grid * grid, hidden_size=CHANNELS
        ),
        normalizer=dataclasses.replace(tiny.normalizer, num_components=None),
        generator=generator,
        image_decoder=dataclasses.replace(
            tiny.image_decoder, feature_channels=CHANNELS, grid=grid, image_px=8 * grid
        ),
    )
    model = config.build().eval().to(device)
    for parameter in model.generator.parameters():
        if parameter.ndim == 1:  # fresh gates are zero
            nn.init.normal_(parameter, std=0.1)
    return model


def dit(width: int, num_layers: int, num_heads: int) -> QueryDiTConfig:
    """Returns a query DiT as wide as the backbone."""
    return QueryDiTConfig(
        num_query_tokens=CONDITION_TOKENS,
        hidden_size=width,
        num_layers=num_layers,
        num_heads=num_heads,
        multiple_of=32,
    )


SIZES = {
    f"{config.hidden_size}_wide_{grid**2}_tokens": (config.hidden_size, grid, config)
    for config in (dit(256, 6, 8), dit(1024, 4, 16))
    for grid in (4, 8)  # the grids of the bundled and of the released models
}
SMALL, QUICK = SIZES["256_wide_16_tokens"], (32, 2, dit(32, 1, 2))


def plan_of(model: UnifiedModel, num_prompts: int, num_images: int) -> tuple[QueryPlan, Tensor]:
    """Returns a plan of random states, and noise [num_prompts * num_images, N, K]."""
    generator = torch.Generator().manual_seed(0)
    assert isinstance(model.generator, QueryDiT)
    device = next(model.parameters()).device
    width = model.config.backbone.hidden_size
    states = torch.randn(num_prompts, CONDITION_TOKENS, width, generator=generator)
    shape = (num_prompts * num_images, *model.config.feature_shape)
    noise = torch.randn(shape, generator=generator)
    return QueryPlan(model.generator, states.to(device)), noise.to(device)


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


def relative(expected: Tensor, got: Tensor) -> float:
    """Returns the largest difference over the largest expected value."""
    return float((got - expected).abs().max() / expected.abs().max())


def one_image(size: tuple[int, int, QueryDiTConfig], options: Options) -> Iterator[Case]:
    """One image, by the plain loop and by the fast path."""
    model = build(*options.pick(size, QUICK), options.device)
    plan, noise = plan_of(model, 1, 1)
    sampling = SamplingConfig(num_inference_steps=options.pick(STEPS, 2))
    samplers: dict[str, Callable[..., Tensor]] = {"plain": draw_plain, "fast": draw}
    if options.device.type == "cuda":
        samplers["compiled"] = CompiledDraw(model.generator)
    yield Case(
        unit="image",
        variants={
            name: partial(sampler, plan, noise, GUIDANCE, sampling)
            for name, sampler in samplers.items()
        },
        difference=relative,
        tolerance=TOLERANCE,
        has_memory=True,
        facts={"steps": sampling.num_inference_steps, "condition_tokens": CONDITION_TOKENS},
    )


def batching(options: Options) -> Iterator[Case]:
    """One image alone, and batches of the same image: of several prompts, and of one prompt."""
    model = build(*options.pick(SMALL, QUICK), options.device)
    sampling = SamplingConfig(num_inference_steps=options.pick(STEPS, 2))
    batches = {"alone": (1, 1), f"{BATCH}_prompts": (BATCH, 1), f"{BATCH}_images": (1, BATCH)}
    yield Case(
        unit="image",
        work={name: prompts * images for name, (prompts, images) in batches.items()},
        variants={
            name: partial(draw, *plan_of(model, *sizes), GUIDANCE, sampling)
            for name, sizes in batches.items()
        },
    )


CASES: dict[str, CaseFunction] = {name: partial(one_image, size) for name, size in SIZES.items()}

if __name__ == "__main__":
    main(__doc__, {**CASES, "batching": batching})
