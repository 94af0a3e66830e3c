"""What the published diffusion decoders share: features guide a diffusion in a VAE's latents.

A decoder adds its network (`predict`). The scheduler is a diffusers object and may be swapped at
any time (`decoder.scheduler = DPMSolverMultistepScheduler.from_config(decoder.scheduler.config)`).
One that draws noise at its steps draws it from the seed of each image, alone or in a batch.
"""

import copy
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from blip3o.core.errors import UsageError
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import StepCallback
from blip3o.models.encoders.vae import import_diffusers

_MAX_TRAIN_TIMESTEPS = 100_000

TILE_PX = 512
"""Side of the tiles in which a VAE decodes images larger than this, when tiling is on."""


class LatentDiffusionDecoder(nn.Module):
    """Features [B, N, K] to pixels [B, 3, P, P] by a guided diffusion in VAE latents [B, C, h, w].

    Only the network is trained, so the VAE needs no gradient. What guidance leads away from, the
    empty condition, is data of the model: it is kept beside the weights as `empty_features` [N, K]
    (the features of a black image for SANA), zeros in a fresh decoder.

    Args:
        config: an `SdxlDecoderConfig` or a `SanaDecoderConfig`.
    """

    empty_first: ClassVar[bool]
    """Order of the two halves of a guided batch."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.config = config
        self.vae = config.autoencoder.build().requires_grad_(False)
        self.scheduler = build_scheduler(config.scheduler)
        empty = torch.zeros(config.grid**2, config.feature_channels)
        self.register_buffer("empty_features", empty)

    def predict(self, noisy: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        """Returns what the scheduler expects of the network (noise or velocity), [B, C, h, w].

        Args:
            noisy: latents, scaled as the scheduler asks, [B, C, h, w].
            timestep: the scheduler's timestep, a scalar.
            features: [B, N, K].
        """
        raise NotImplementedError

    def sample_latents(
        self,
        features: Tensor,
        noise: Tensor,
        num_inference_steps: int,
        *,
        guidance_scale: float | None = None,
        empty_features: Tensor | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Returns scaled latents [B, C, h, w], fp32, for features.

        Args:
            features: in the space the decoder was trained in, [B, N, K].
            noise: standard normal latents [B, C, h, w]; h and w set the image's size.
            num_inference_steps: steps of the scheduler.
            guidance_scale: 1 follows the features alone; the config's number if None.
            empty_features: empty condition [N, K] or [B, N, K] instead of the stored one.
            callback: called after each step with (steps done, latents); may return latents to go
                on with.

        Raises:
            ValueError: for less than one step.
        """
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        empty = self.empty_features if empty_features is None else empty_features
        empty = empty.to(features).expand_as(features)

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            noisy = noisy.to(features.dtype)
            if scale == 1.0:
                return self.predict(noisy, timestep, features)
            halves = (empty, features) if self.empty_first else (features, empty)
            both = self.predict(torch.cat([noisy, noisy]), timestep, torch.cat(halves)).float()
            null, conditional = both.chunk(2) if self.empty_first else reversed(both.chunk(2))
            return null + scale * (conditional - null)

        return _denoise(predict, noise, self.scheduler, num_inference_steps, callback)

    def decode(
        self,
        features: Tensor,
        noise: Tensor,
        num_inference_steps: int,
        *,
        guidance_scale: float | None = None,
        empty_features: Tensor | None = None,
    ) -> Tensor:
        """Returns images [B, 3, P, P] in [-1, 1] for features; arguments as above."""
        latents = self.sample_latents(
            features,
            noise,
            num_inference_steps,
            guidance_scale=guidance_scale,
            empty_features=empty_features,
        )
        autoencoder = self.config.autoencoder
        raw = latents / autoencoder.scaling_factor + autoencoder.shift_factor
        return latents_to_pixels(self.vae, raw)

    def set_low_memory(self, *, sliced: bool = True, tiled: bool = True) -> None:
        """Chooses how the VAE decodes; see `set_low_memory` of this module."""
        set_low_memory(self.vae, sliced=sliced, tiled=tiled)


def build_scheduler(settings: Mapping[str, Any]) -> Any:  # noqa: ANN401  (a diffusers scheduler)
    """Returns a diffusers scheduler.

    Args:
        settings: what diffusers writes as scheduler_config.json; `_class_name` names the class.

    Raises:
        UsageError: if diffusers has no scheduler of that name or is not installed.
    """
    diffusers = import_diffusers("a diffusion decoder")
    name = str(settings.get("_class_name"))
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise UsageError(f"scheduler._class_name: diffusers has no scheduler {name!r}")
    steps = settings.get("num_train_timesteps", 0)
    if not isinstance(steps, int) or steps > _MAX_TRAIN_TIMESTEPS:  # it makes tables of them
        raise UsageError(f"scheduler.num_train_timesteps must be at most {_MAX_TRAIN_TIMESTEPS:,}")
    with torch.device("cpu"):  # its tables are read at once, also where a model is only sketched
        return found.from_config(dict(settings))


def start_scheduler(scheduler: Any, num_inference_steps: int, device: torch.device) -> Any:  # noqa: ANN401
    """Returns a copy of a scheduler at the start of a run, so that runs never share a state.

    Args:
        scheduler: a diffusers scheduler.
        num_inference_steps: at least 1.
        device: where its tables go.

    Raises:
        ValueError: for less than one step.
    """
    sigmas = inference_sigmas(num_inference_steps)[:-1]
    started = copy.deepcopy(scheduler)
    if isinstance(started, import_diffusers("a scheduler").FlowMatchEulerDiscreteScheduler):
        # Left alone it would end at the smallest trained level instead of 1 / steps.
        started.set_timesteps(sigmas=sigmas.tolist(), device=device)
    else:
        started.set_timesteps(num_inference_steps, device=device)
    if hasattr(started, "set_begin_index"):
        # Many steps round to equal timesteps; left to look for the first, it takes the second.
        started.set_begin_index(0)
    return started


def latents_to_pixels(vae: Any, latents: Tensor) -> Tensor:  # noqa: ANN401
    """Returns images [B, 3, P, P] in [-1, 1] of latents [B, C, h, w].

    Args:
        vae: diffusers' autoencoder.
        latents: neither scaled nor shifted.
    """
    if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
        vae.float()  # activations of the KL decoders leave the range of fp16
    return vae.decode(latents.to(vae.dtype), return_dict=False)[0].clamp(-1.0, 1.0)


def set_low_memory(
    vae: Any,  # noqa: ANN401  (a diffusers autoencoder)
    *,
    sliced: bool = True,
    tiled: bool = True,
    tile_px: int = TILE_PX,
) -> None:
    """Chooses how a VAE decodes.

    Args:
        vae: diffusers' autoencoder.
        sliced: one image of a batch after the other; the result is the same.
        tiled: images in overlapping tiles that are blended; the result is only nearly the same.
        tile_px: side of a tile; smaller images are decoded whole.
    """
    (vae.enable_slicing if sliced else vae.disable_slicing)()
    if not tiled:
        vae.disable_tiling()
    elif hasattr(vae, "tile_latent_min_size"):  # AutoencoderKL; overlaps by a quarter
        vae.enable_tiling()
        vae.tile_sample_min_size = tile_px
        vae.tile_latent_min_size = tile_px // 2 ** (len(vae.config.block_out_channels) - 1)
    else:
        scale = vae.spatial_compression_ratio
        stride = tile_px // scale * 3 // 4 * scale  # whole latent pixels
        vae.enable_tiling(tile_px, tile_px, stride, stride)


def _denoise(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    scheduler: Any,  # noqa: ANN401  (a diffusers scheduler)
    num_steps: int,
    callback: StepCallback | None,
) -> Tensor:
    scheduler = start_scheduler(scheduler, num_steps, noise.device)
    # Flow matching schedulers scale neither the noise nor the input.
    latents = noise.float() * getattr(scheduler, "init_noise_sigma", 1.0)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    drawing = {"generator": _step_generators(noise)} if takes_generator else {}
    for step, timestep in enumerate(scheduler.timesteps, 1):
        scales = hasattr(scheduler, "scale_model_input")
        noisy = scheduler.scale_model_input(latents, timestep) if scales else latents
        prediction = predict(noisy, timestep).float()
        latents = scheduler.step(prediction, timestep, latents, **drawing, return_dict=False)[0]
        changed = None if callback is None else callback(step, latents)
        latents = latents if changed is None else changed
    return latents


def _step_generators(noise: Tensor) -> list[torch.Generator]:
    """Returns a source of noise for each image, seeded by the noise that it starts from."""
    starts = noise.detach().float().cpu().flatten(1).numpy()
    # A checksum of all numbers: of a seed torch's CPU generator reads 32 bits, and two numbers of
    # half precision have too few values for every image to have its own.
    return [torch.Generator().manual_seed(zlib.crc32(start.tobytes())) for start in starts]
