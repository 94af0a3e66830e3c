"""Measures how far the images of a decoder are from the solution of its equation, and their cost.

A decoder follows an ordinary differential equation from noise to an image. More steps come closer
to its solution, so each sampler is compared with very many steps from the same noise and features.
`error` is the mean distance of the latents divided by their norm, `pixel_error` the same of the
images. `calls` counts passes of the network.

`sdxl` and `sana` are small decoders, trained on scenes when they are first needed (minutes on one
core; `outputs/decoder_steps` keeps them). Their latents are principal components of patches, since
a VAE would have to be trained as well. `pocket` is the decoder of the bundled model. Cases named
`pipeline` measure whole images, from the prompt on, with a mid-sized decoder of random weights.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import Case, CaseFunction, Options, main
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from blip3o import Blip3oPipeline
from blip3o.core.rng import generator
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_scene
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import Solver, at_levels, euler, heun
from blip3o.imaging.pixels import resized_pixels, to_pixels
from blip3o.models.autoencoders import KlAutoencoderConfig
from blip3o.models.decoders.latent_diffusion import (
    LatentDiffusionDecoder,
    Sampler,
    SamplerName,
    build_scheduler,
)
from blip3o.models.decoders.pocket import PocketDecoder
from blip3o.models.decoders.sana import SanaDecoderConfig
from blip3o.models.decoders.sdxl import SdxlDecoderConfig

FOLDER = Path("outputs/decoder_steps")
IMAGE_PX, SIDE, CHANNELS = 32, 8, 4  # of images, and of their latents
NUM_TRAINED, NUM_TESTED = 1000, 16
TRAINING_STEPS, BATCH, DROPOUT, LEARNING_RATE = 1000, 16, 0.1, 2e-3
EXACT_STEPS = 300
PROMPT = "a red cat to the left of a blue car"

VAE = KlAutoencoderConfig(
    latent_channels=CHANNELS, block_out_channels=(32, 64, 64), scaling_factor=0.13025
)
SIZES: dict[str, Any] = {"feature_channels": 64, "grid": 4, "autoencoder": VAE}
SMALL: dict[str, SdxlDecoderConfig | SanaDecoderConfig] = {
    "sdxl": SdxlDecoderConfig(
        block_out_channels=(32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        num_heads=(2, 4),
        time_id_size=16,
        norm_num_groups=16,
        sample_size=SIDE,
        **SIZES,
    ),
    "sana": SanaDecoderConfig(
        num_layers=4,
        num_heads=4,
        head_dim=32,
        num_cross_heads=4,
        cross_head_dim=32,
        caption_channels=128,
        sample_size=SIDE,
        **SIZES,
    ),
}
MEDIUM: dict[str, SdxlDecoderConfig | SanaDecoderConfig] = {
    "sdxl": SdxlDecoderConfig(
        block_out_channels=(64, 128, 256),
        layers_per_block=2,
        transformer_layers_per_block=(0, 1, 4),
        num_heads=(1, 2, 4),
        time_id_size=64,
        sample_size=32,
        **SIZES,
    ),
    "sana": SanaDecoderConfig(
        sample_size=16,
        num_layers=8,
        num_heads=16,
        head_dim=32,
        num_cross_heads=8,
        cross_head_dim=64,
        caption_channels=512,
        **SIZES,
    ),
}
"""Sizes for which the decoder takes nearly all of the time, as it does in the released models."""

_DPM, _UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
SOLVERS: dict[str, dict[str, dict[str, object]]] = {
    "sdxl": {
        "euler": {},
        "euler_trailing": {"timestep_spacing": "trailing"},
        "dpm2_leading": {"_class_name": _DPM},
        "dpm2": {"_class_name": _DPM, "timestep_spacing": "trailing"},
        "dpm2_karras": {"_class_name": _DPM, "use_karras_sigmas": True},
        "dpm2_lu": {"_class_name": _DPM, "use_lu_lambdas": True},
        "dpm3": {"_class_name": _DPM, "solver_order": 3, "timestep_spacing": "trailing"},
        "unipc2": {"_class_name": _UNIPC, "timestep_spacing": "trailing"},
        "unipc3": {"_class_name": _UNIPC, "solver_order": 3, "timestep_spacing": "trailing"},
    },
    "sana": {
        "dpm2": {},
        "dpm2_shift_2": {"flow_shift": 2.0},
        "dpm2_shift_4": {"flow_shift": 4.0},
        "dpm2_heun": {"solver_type": "heun"},
        "dpm3": {"solver_order": 3},
        "unipc2": {"_class_name": _UNIPC},
        "unipc3": {"_class_name": _UNIPC, "solver_order": 3},
        "euler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    },
}
STEPS = (8, 10, 12, 15, 20, 25, 30)
INTERVALS = ((0.0, 1.0), (0.0, 0.8), (0.2, 1.0), (0.2, 0.8), (0.4, 1.0))


class Scenes(NamedTuple):
    """Images [B, 3, P, P] of `IMAGE_PX` and their normalized features [B, N, K]."""

    pixels: Tensor
    features: Tensor


class Sampled(NamedTuple):
    """Latents, their images, and the number of steps that gave them."""

    latents: Tensor
    pixels: Tensor
    calls: int


@cache
def bundled() -> Blip3oPipeline:
    """Returns the bundled model in fp32."""
    return Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="fp32")


@torch.no_grad()
def features_of(pixels: Tensor) -> Tensor:
    """Returns the features that the bundled model has of images."""
    model = bundled().model
    return torch.cat([model.normalizer(model.encode_images(rows)) for rows in pixels.split(50)])


@cache
def scenes(split: str, count: int) -> Scenes:
    """Returns the first scenes of a split of the scenes data set."""
    side = bundled().model.config.image_encoder.image_px
    drawn = [render(sample_scene(0, index, split), side) for index in range(count)]
    pixels = torch.stack([to_pixels(image, side) for image in drawn])
    return Scenes(resized_pixels(pixels, IMAGE_PX, IMAGE_PX), features_of(pixels))


def patches(pixels: Tensor) -> Tensor:
    """Returns images [B, 3, P, P] as vectors of the values of each patch, [B, D, h, w]."""
    return functional.pixel_unshuffle(pixels, IMAGE_PX // SIDE)


class Latents(NamedTuple):
    """Principal components of patches, which take the place of a VAE's latents.

    Args:
        mean: mean patch, [D].
        basis: components as columns, [D, C].
        scale: factor that gives all latents together a variance of 1.
    """

    mean: Tensor
    basis: Tensor
    scale: float

    @classmethod
    def of(cls, pixels: Tensor) -> "Latents":
        """Returns the components of some images."""
        rows = patches(pixels).movedim(1, -1).flatten(0, 2)
        mean = rows.mean(0)
        _, _, basis = torch.pca_lowrank(rows, CHANNELS)
        return cls(mean, basis, 1 / float(((rows - mean) @ basis).std()))

    def encode(self, pixels: Tensor) -> Tensor:
        """Returns the latents [B, C, h, w] of images [B, 3, P, P]."""
        return (((patches(pixels).movedim(1, -1) - self.mean) @ self.basis) * self.scale).movedim(
            -1, 1
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Returns images [B, 3, P, P] in [-1, 1] for latents [B, C, h, w]."""
        rows = latents.movedim(1, -1) / self.scale @ self.basis.T + self.mean
        return functional.pixel_shuffle(rows.movedim(-1, 1), IMAGE_PX // SIDE).clamp(-1.0, 1.0)


def fit(decoder: LatentDiffusionDecoder, latents: Tensor, features: Tensor, steps: int) -> None:
    """Trains a decoder with AdamW and a cosine; its empty condition is the black image."""
    side = bundled().model.config.image_encoder.image_px
    decoder.empty_features.copy_(features_of(torch.full((1, 3, side, side), -1.0))[0])
    weights = [one for one in decoder.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        rate = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50)
        rows = torch.randint(len(latents), (BATCH,))
        is_dropped = torch.rand(BATCH, 1, 1) < DROPOUT
        condition = torch.where(is_dropped, decoder.empty_features, features[rows])
        noise = torch.randn(BATCH, *decoder.config.noise_shape)
        noisy, timestep, target = decoder.add_noise(latents[rows], noise, 1 - torch.rand(BATCH))
        loss = (decoder.predict(noisy, timestep, condition) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {float(loss.detach()):.4f}", flush=True)


@cache
def trained(kind: str, *, is_quick: bool) -> tuple[LatentDiffusionDecoder, Latents]:
    """Returns a small decoder that draws scenes from the features of the bundled model."""
    torch.manual_seed(0)
    decoder: LatentDiffusionDecoder = SMALL[kind].build()
    pixels, features = scenes("train", 4 if is_quick else NUM_TRAINED)
    latents = Latents.of(pixels)
    file = FOLDER / f"{kind}.safetensors"
    if is_quick or not file.exists():
        fit(decoder, latents.encode(pixels), features, 1 if is_quick else TRAINING_STEPS)
        if not is_quick:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(decoder.state_dict(), file)
    else:
        decoder.load_state_dict(load_file(file))
    return decoder.eval(), latents


@torch.no_grad()
def sample(
    decoder: LatentDiffusionDecoder,
    space: Latents,
    features: Tensor,
    sampler: Sampler,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Sampled:
    """Returns the latents and images of a sampler; image k starts from the noise of seed k."""
    shape = decoder.config.noise_shape
    noise = torch.stack([torch.randn(shape, generator=generator(k)) for k in range(len(features))])
    done: list[int] = []
    decoder.config = dataclasses.replace(decoder.config, guidance_interval=interval)
    decoder.scheduler = build_scheduler({**decoder.config.scheduler, **sampler.solver})
    latents = decoder.sample_latents(
        features, noise, sampler.num_steps, callback=lambda step, _: done.append(step)
    )
    return Sampled(latents, space.decode(latents), len(done))


def distance(exact: Tensor, got: Tensor) -> float:
    """Returns the mean over images of the distance divided by the norm of the exact one."""
    differences, norms = ((one.flatten(1).norm(dim=1)) for one in (got - exact, exact))
    return float((differences / norms).mean())


def errors(exact: Sampled, got: Sampled) -> Mapping[str, float]:
    """Returns the distances of latents and images from the exact ones."""
    return {
        "error": distance(exact.latents, got.latents),
        "pixel_error": distance(exact.pixels, got.pixels),
        "calls": got.calls,
    }


def exact_sampler(kind: str, num_steps: int) -> Sampler:
    """Returns the second-order solver at very many steps, on all noise levels of training."""
    return Sampler(num_steps=num_steps, solver=SOLVERS[kind]["dpm2"])


def solvers(kind: str, options: Options) -> Iterator[Case]:
    """The published sampler, the fast one, and solvers at growing numbers of steps."""
    decoder, space = trained(kind, is_quick=options.is_quick)
    features = scenes("val", options.pick(NUM_TESTED, 2)).features
    exact = sample(decoder, space, features, exact_sampler(kind, options.pick(EXACT_STEPS, 4)))
    many = options.pick(200, 3)
    samplers: dict[str, Sampler] = {
        **decoder.config.samplers,
        f"published_{many}": Sampler(num_steps=many, solver={}),
        "exact_halved": exact_sampler(kind, options.pick(EXACT_STEPS // 2, 2)),
    }
    for name, solver in SOLVERS[kind].items():
        for steps in options.pick(STEPS, (2,)):
            samplers[f"{name}_{steps}"] = Sampler(num_steps=steps, solver=solver)
    yield Case(
        unit="image",
        work=len(features),
        variants={
            name: partial(sample, decoder, space, features, one) for name, one in samplers.items()
        },
        figures=partial(errors, exact),
        is_long=True,
        most_rounds=1,
        facts={"guidance_scale": decoder.config.guidance_scale},
    )


def intervals(kind: str, options: Options) -> Iterator[Case]:
    """Guidance between two noise levels only, compared with guidance at all of them."""
    decoder, space = trained(kind, is_quick=options.is_quick)
    features = scenes("val", options.pick(NUM_TESTED, 2)).features
    exact = sample(decoder, space, features, exact_sampler(kind, options.pick(EXACT_STEPS, 4)))
    draw = partial(sample, decoder, space, features, decoder.config.samplers["fast"])
    yield Case(
        unit="image",
        work=len(features),
        variants={f"{one[0]:g}_to_{one[1]:g}": partial(draw, interval=one) for one in INTERVALS},
        figures=partial(errors, exact),
        is_long=True,
        most_rounds=1,
    )


def pocket(options: Options) -> Iterator[Case]:
    """Solvers of the pocket decoder; the exact image is that of many second-order steps."""
    model = bundled().model
    decoder = model.image_decoder
    assert isinstance(decoder, PocketDecoder)
    features = scenes("val", options.pick(NUM_TESTED, 2)).features
    shape, shift = decoder.config.noise_shape, decoder.config.sigma_shift
    noise = torch.stack([torch.randn(shape, generator=generator(k)) for k in range(len(features))])

    @torch.no_grad()
    def images(solver: Solver, num_steps: int) -> Tensor:
        sigmas = inference_sigmas(num_steps, shift)
        velocity = at_levels(partial(decoder.velocity, features=features), sigmas)
        return solver(velocity, noise, sigmas, None).clamp(-1.0, 1.0)

    exact = images(heun, options.pick(40, 2))
    sizes = {f"euler_{n}": (euler, n) for n in options.pick((3, 1, 2, 4, 6, 12), (1,))}
    sizes |= {f"heun_{n}": (heun, n) for n in options.pick((2, 3), (1,))}
    yield Case(
        unit="image",
        work=len(features),
        variants={name: partial(images, *one) for name, one in sizes.items()},
        figures=lambda got: {"pixel_error": distance(exact, got)},
        is_long=True,
        most_rounds=1,
    )


def pipeline(kind: str, options: Options) -> Iterator[Case]:
    """An image from a prompt, by the published sampler of the decoder and by the fast one."""
    base, model = bundled(), bundled().model
    config = MEDIUM[kind] if not options.is_quick else SMALL[kind]
    torch.manual_seed(0)
    whole = dataclasses.replace(model.config, image_decoder=config)
    drawing = whole.build().eval()
    for name, part in model.named_children():
        if name != "image_decoder":
            setattr(drawing, name, part)
    pipe = Blip3oPipeline(drawing, base.tokenizer)

    def draw(name: SamplerName) -> Tensor:
        chosen = dataclasses.replace(config, sampler=name)
        pipe.image_decoder.scheduler = build_scheduler(chosen.solving_scheduler)
        steps = options.pick(chosen.num_steps, 1)
        images = pipe(
            PROMPT, generator=generator(0), num_decoder_steps=steps, output_type="pt"
        ).images
        assert isinstance(images, Tensor)
        return images

    yield Case(
        unit="image",
        variants={name: partial(draw, name) for name in ("published", "fast")},
        facts={
            "decoder_parameters": sum(one.numel() for one in drawing.image_decoder.parameters())
        },
    )


CASES: dict[str, CaseFunction] = {"pocket": pocket}
for _kind in SMALL:
    CASES[_kind] = partial(solvers, _kind)
    CASES[f"{_kind}_interval"] = partial(intervals, _kind)
    CASES[f"{_kind}_pipeline"] = partial(pipeline, _kind)

if __name__ == "__main__":
    main(__doc__, CASES)
