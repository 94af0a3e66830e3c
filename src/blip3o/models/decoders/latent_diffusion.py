"""The part that the published diffusion decoders share: features guide a diffusion in VAE latents.

A decoder adds its network (`predict`). The scheduler is a diffusers object that may be replaced at
any time (`decoder.scheduler = DPMSolverMultistepScheduler.from_config(decoder.scheduler.config)`).
A scheduler that draws noise at its steps draws it from a seed of each image, so an image does not
depend on the rest of its batch. Axes: B images, N tokens, K channels, C latent channels, h and w
latent pixels.
"""

import copy
import dataclasses
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, NotNegative, Share
from blip3o.core.config import component
from blip3o.core.errors import UsageError
from blip3o.flow.guidance import combine
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import StepCallback
from blip3o.models.autoencoders import (
    AutoencoderConfig,
    denormalized,
    import_diffusers,
    latents_to_pixels,
    normalized,
    posterior,
    set_low_memory,
)
from blip3o.models.protocols import DecoderDefaults, LatentPredictor
from blip3o.nn.remembered import remembered

_MAX_TRAIN_TIMESTEPS = 100_000


class Scheduler(Protocol):
    """The members of a diffusers scheduler that sampling uses."""

    config: Mapping[str, float]
    timesteps: Tensor
    set_timesteps: Callable[..., None]
    step: Callable[..., tuple[Tensor, ...]]


@runtime_checkable
class _ScalesNoise(Protocol):
    """A scheduler that scales the initial noise; those for flow matching do not."""

    init_noise_sigma: float


@runtime_checkable
class _ScalesInput(Protocol):
    """A scheduler that scales the network's input; those for flow matching do not."""

    scale_model_input: Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class _CountsSteps(Protocol):
    """A scheduler that can find its place by counting steps instead of looking up a timestep."""

    set_begin_index: Callable[[int], None]


SamplerName = Literal["fast", "published"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A solver and the number of steps that it needs.

    Args:
        num_steps: default number of steps.
        solver: settings of a diffusers scheduler that define the solver and the spacing of its
            steps, but not the noise levels of training.
    """

    num_steps: int
    solver: Mapping[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentDiffusionConfig(DecoderDefaults):
    """The part that the configs of latent diffusion decoders share.

    Args:
        kind: name in the table of decoders.
        feature_channels: channels of the features (K).
        grid: feature tokens along one side.
        sample_size: side of the latents.
        autoencoder: config of the VAE, an entry of `AUTOENCODERS`.
        scheduler: contents of a scheduler_config.json of diffusers, with `_class_name`: the noise
            levels of training, and a solver.
        sampler: "published" samples as `scheduler` says. "fast" exchanges the published solver for
            one that takes fewer steps to an image of at most the same error (docs/results.md); it
            leaves any other solver in `scheduler` alone.
        guidance_scale: default strength of guidance; 1 turns it off (published: 3).
        guidance_interval: lowest and highest noise level with guidance, as shares of the trained
            steps (published: all). Outside of it a step costs half as much, and the image changes
            (docs/results.md).
    """

    kind: str
    feature_channels: Count
    grid: Count
    sample_size: Count
    autoencoder: AutoencoderConfig = component("blip3o.models.autoencoders:AUTOENCODERS")
    scheduler: dict[str, object]
    sampler: SamplerName = "fast"
    guidance_scale: NotNegative = 3.0
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)

    samplers: ClassVar[Mapping[SamplerName, Sampler]]
    """The samplers of a kind of decoder. "published" lists the settings that define its solver."""

    @property
    def num_steps(self) -> int:
        """Default number of steps, which is that of the sampler."""
        return self._sampler.num_steps

    @property
    def solving_scheduler(self) -> dict[str, object]:
        """The settings of the scheduler that generates images."""
        return {**self.scheduler, **self._sampler.solver}

    @property
    def _sampler(self) -> Sampler:
        published, chosen = self.samplers["published"], self.samplers[self.sampler]
        names = {*published.solver, *chosen.solver}
        own = {name: self.scheduler[name] for name in names if self.scheduler.get(name)}
        is_published = own == dict(published.solver)
        return chosen if is_published else dataclasses.replace(published, solver={})

    @property
    def image_px(self) -> int:
        """Side of the image."""
        return self.sample_size * self.autoencoder.downsampling

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape of the noise that one image starts from, which is that of its latents."""
        return (self.autoencoder.latent_channels, self.sample_size, self.sample_size)

    @property
    def predicts_latents(self) -> bool:
        """True: `latent_decoding` trains the network."""
        return True


ConfigT = TypeVar("ConfigT", bound=LatentDiffusionConfig)


class LatentDiffusionDecoder(LatentPredictor, Generic[ConfigT]):
    """Features [B, N, K] to pixels [B, 3, P, P] by a guided diffusion in VAE latents [B, C, h, w].

    Only the network is trained, so the VAE needs no gradient. The empty condition, which guidance
    leads away from, is data of the model: it is stored with the weights as `empty_features` [N, K]
    (the features of a black image for SANA) and is zeros in a fresh decoder.

    Args:
        config: an `SdxlDecoderConfig` or a `SanaDecoderConfig`.
    """

    empty_first: ClassVar[bool]
    """Whether the empty condition is the first half of a guided batch, or the second."""

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config
        self.vae = config.autoencoder.build().requires_grad_(False)
        self.scheduler = build_scheduler(config.solving_scheduler)
        empty = torch.zeros(config.grid**2, config.feature_channels)
        self.register_buffer("empty_features", empty)
        self._remembers_condition = True

    @property
    def condition_layers(self) -> list[nn.Module]:
        """Layers that see the condition only, so the steps of an image share their outputs.

        None by default: they must be a share of the work that is worth the memory.
        """
        return []

    def encode_latents(self, pixels: Tensor) -> Tensor:
        """Returns the normalized latents of images; see `LatentPredictor.encode_latents`."""
        autoencoder = self.config.autoencoder
        latents, _ = posterior(self.vae, pixels, autoencoder.latent_channels)
        return normalized(latents.float(), autoencoder)

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
            features: normalized as in the decoder's training, [B, N, K].
            noise: standard normal latents [B, C, h, w]; h and w set the image's size.
            num_inference_steps: steps of the scheduler.
            guidance_scale: 1 turns guidance off; None for the config's value.
            empty_features: empty condition [N, K] or [B, N, K] instead of the stored one.
            callback: called after each step with (steps done, latents); may return latents that
                replace them.

        Raises:
            ValueError: if `num_inference_steps` is below 1.
        """
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        empty = self.empty_features if empty_features is None else empty_features
        empty = empty.to(features).expand_as(features)
        both = torch.cat((empty, features) if self.empty_first else (features, empty))
        low, high = self.config.guidance_interval

        def predict(noisy: Tensor, timestep: Tensor, level: float) -> Tensor:
            noisy = noisy.to(features.dtype)
            if scale == 1.0 or not low <= level <= high:
                return self.predict(noisy, timestep, features)
            pair = self.predict(torch.cat([noisy, noisy]), timestep, both).float()
            # `combine` takes the empty half first.
            return combine(pair if self.empty_first else pair.roll(len(noisy), 0), scale)

        with remembered(self.condition_layers if self._remembers_condition else ()):
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
        """Returns images [B, 3, P, P] in [-1, 1] for features; see `sample_latents`."""
        latents = self.sample_latents(
            features,
            noise,
            num_inference_steps,
            guidance_scale=guidance_scale,
            empty_features=empty_features,
        )
        return latents_to_pixels(self.vae, denormalized(latents, self.config.autoencoder))

    def set_low_memory(self, *, sliced: bool = True, tiled: bool = True) -> None:
        """Sets how the VAE decodes; see `autoencoders.set_low_memory`.

        With either, each step also computes the `condition_layers` again instead of keeping their
        outputs, with the same result.
        """
        self._remembers_condition = not (sliced or tiled)
        set_low_memory(self.vae, sliced=sliced, tiled=tiled)


def build_scheduler(settings: Mapping[str, object]) -> Scheduler:
    """Returns a diffusers scheduler.

    Args:
        settings: contents of a scheduler_config.json; `_class_name` names the class.

    Raises:
        UsageError: if diffusers has no scheduler of that name, or is not installed.
    """
    diffusers = import_diffusers("a diffusion decoder")
    name = str(settings.get("_class_name"))
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise UsageError(f"scheduler._class_name: diffusers has no scheduler {name!r}")
    steps = settings.get("num_train_timesteps", 0)
    if not isinstance(steps, int) or steps > _MAX_TRAIN_TIMESTEPS:  # a scheduler allocates tables
        raise UsageError(f"scheduler.num_train_timesteps must be at most {_MAX_TRAIN_TIMESTEPS:,}")
    # Schedulers read their tables when they are created, which fails on the meta device.
    with torch.device("cpu"):
        return found.from_config(dict(settings))


def start_scheduler(
    scheduler: Scheduler, num_inference_steps: int, device: torch.device
) -> Scheduler:
    """Returns a copy of a scheduler at the start of a run, so that runs share no state.

    Args:
        scheduler: a diffusers scheduler.
        num_inference_steps: at least 1.
        device: device of its tables.

    Raises:
        ValueError: if `num_inference_steps` is below 1.
    """
    sigmas = inference_sigmas(num_inference_steps)[:-1]
    started = copy.deepcopy(scheduler)
    if isinstance(started, import_diffusers("a scheduler").FlowMatchEulerDiscreteScheduler):
        # By default it would end at the smallest trained level instead of 1 / steps.
        started.set_timesteps(sigmas=sigmas.tolist(), device=device)
    else:
        started.set_timesteps(num_inference_steps, device=device)
    if isinstance(started, _CountsSteps):
        # Many steps round to equal timesteps, and a lookup of the first one would find the second.
        started.set_begin_index(0)
    return started


def _denoise(
    predict: Callable[[Tensor, Tensor, float], Tensor],
    noise: Tensor,
    scheduler: Scheduler,
    num_steps: int,
    callback: StepCallback | None,
) -> Tensor:
    scheduler = start_scheduler(scheduler, num_steps, noise.device)
    scale = scheduler.init_noise_sigma if isinstance(scheduler, _ScalesNoise) else 1.0
    latents = noise.float() * scale
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    drawing = {"generator": _step_generators(noise)} if takes_generator else {}
    levels = (scheduler.timesteps / scheduler.config["num_train_timesteps"]).tolist()
    for step, (timestep, level) in enumerate(zip(scheduler.timesteps, levels, strict=True), 1):
        noisy = latents
        if isinstance(scheduler, _ScalesInput):
            noisy = scheduler.scale_model_input(latents, timestep)
        prediction = predict(noisy, timestep, level).float()
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **drawing)[0]
        changed = None if callback is None else callback(step, latents)
        latents = latents if changed is None else changed
    return latents


def _step_generators(noise: Tensor) -> list[torch.Generator]:
    """Returns a random generator for each image, seeded by the image's initial noise."""
    starts = noise.detach().float().cpu().flatten(1).numpy()
    # torch's CPU generator reads 32 bits of a seed. A checksum of all numbers fills them. One or
    # two half-precision numbers have too few values for each image of a large batch.
    return [torch.Generator().manual_seed(zlib.crc32(start.tobytes())) for start in starts]
