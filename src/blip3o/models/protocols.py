"""The interfaces of backbones, image encoders, generators and image decoders, and of their configs.

The rest of the package uses these parts only through the members declared here. Configs are
frozen dataclasses that satisfy a `Protocol`. Modules inherit from a base class, because Python has
no type for "an `nn.Module` that also has these methods". Axes: B rows, T tokens, M images, N tokens
of an image, D backbone width, V vocabulary, C channels of the image encoder, K channels of the
normalized features, P pixels along a side.
"""

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from blip3o.core.config import Dataclass
from blip3o.models.backbones.base import Backbone as Backbone
from blip3o.models.backbones.base import BackboneConfig as BackboneConfig
from blip3o.models.generators.plan import Generator as Generator
from blip3o.models.generators.plan import GeneratorConfig as GeneratorConfig


@runtime_checkable
class ImageEncoderConfig(Dataclass, Protocol):
    """Config of an image encoder, an entry of `ENCODERS`."""

    @property
    def kind(self) -> str:
        """Name in the table."""

    @property
    def image_px(self) -> int:
        """Side of the square input image (P)."""

    @property
    def grid(self) -> int:
        """Feature tokens along one side."""

    @property
    def num_tokens(self) -> int:
        """Feature tokens of an image (N)."""

    @property
    def num_channels(self) -> int:
        """Channels of a feature token (C)."""

    def build(self) -> "ImageEncoder":
        """Returns the encoder with fresh weights."""


@runtime_checkable
class ImageDecoderConfig(Dataclass, Protocol):
    """Config of an image decoder, an entry of `DECODERS`."""

    @property
    def kind(self) -> str:
        """Name in the table."""

    @property
    def image_px(self) -> int:
        """Side of the generated image (P)."""

    @property
    def feature_channels(self) -> int:
        """Channels of the features that the decoder reads."""

    @property
    def reads_raw(self) -> bool:
        """Whether the decoder reads features as the image encoder gives them, not normalized."""

    @property
    def grid(self) -> int:
        """Feature tokens along one side."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one image starts from; (0,) if decoding needs no noise."""

    @property
    def predicts_clean(self) -> bool:
        """Whether the decoder is a `CleanPredictor`, which `pixel_decoding` trains."""

    @property
    def predicts_latents(self) -> bool:
        """Whether the decoder is a `LatentPredictor`, which `latent_decoding` trains."""

    @property
    def num_steps(self) -> int:
        """Default number of steps from noise to the image."""

    @property
    def guidance_scale(self) -> float | None:
        """Default guidance scale; None for a decoder without guidance."""

    @property
    def empty_prompt(self) -> str | None:
        """Prompt whose features are the empty condition while the stored one is all zeros.

        None always uses the stored condition.
        """

    def build(self) -> "ImageDecoder":
        """Returns the decoder with fresh weights."""


class DecoderDefaults:
    """Members of a decoder's config that most decoders leave at these values; a mixin."""

    @property
    def reads_raw(self) -> bool:
        """False: the decoder reads normalized features."""
        return False

    @property
    def predicts_clean(self) -> bool:
        """False: the decoder does not predict clean images."""
        return False

    @property
    def predicts_latents(self) -> bool:
        """False: the decoder does not predict latents."""
        return False

    @property
    def num_steps(self) -> int:
        """1: the decoder takes no steps."""
        return 1

    @property
    def guidance_scale(self) -> float | None:
        """None: the decoder has no guidance."""
        return None

    @property
    def empty_prompt(self) -> str | None:
        """None: the stored empty condition is always used."""
        return None


class ImageEncoder(nn.Module):
    """Pixels [B, 3, P, P] in [-1, 1] to features [B, N, C], tokens row by row."""

    seams: ClassVar[tuple[str, ...]] = ("forward",)
    """Methods that need weights and are called from outside; offloading wraps them."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the features of images.

        Args:
            pixels: [B, 3, P, P] in [-1, 1].

        Raises:
            ValueError: if the images do not have the config's size.
        """
        raise NotImplementedError


class ImageDecoder(nn.Module):
    """Features, normalized or raw as the config says, to pixels [B, 3, P, P] in [-1, 1]."""

    seams: ClassVar[tuple[str, ...]] = ("decode",)
    """Methods that need weights and are called from outside; offloading wraps them."""

    @property
    def layers(self) -> list[nn.Module]:
        """Repeated blocks that are worth compiling; none by default."""
        return []

    def decode(
        self,
        features: Tensor,
        noise: Tensor,
        num_inference_steps: int,
        *,
        guidance_scale: float | None = None,
        empty_features: Tensor | None = None,
    ) -> Tensor:
        """Returns images [B, 3, P, P] in [-1, 1] for features.

        Args:
            features: from `UnifiedModel.decoder_features`, [B, N, feature_channels].
            noise: standard normal numbers to start from, [B, *noise_shape].
            num_inference_steps: steps from noise to the image, at least 1.
            guidance_scale: 1 turns guidance off; None for the config's value. A decoder without
                guidance ignores it.
            empty_features: empty condition [N, K] or [B, N, K] instead of the stored one. A
                decoder without guidance ignores it.
        """
        raise NotImplementedError


class CleanPredictor(ImageDecoder):
    """An image decoder that predicts the clean image from a noisy one."""

    def predict_clean(self, noisy: Tensor, sigma: Tensor, features: Tensor) -> Tensor:
        """Returns the predicted clean images [B, 3, P, P].

        Args:
            noisy: images on the path from clean to noise, [B, 3, P, P].
            sigma: noise levels in [0, 1], [B].
            features: normalized features, [B, N, K].
        """
        raise NotImplementedError


class NoisyLatents(NamedTuple):
    """Noisy latents and the prediction that a network shall make from them.

    Args:
        noisy: [B, C, h, w].
        timestep: noise level in the units of the network, [B].
        target: noise or velocity, [B, C, h, w].
    """

    noisy: Tensor
    timestep: Tensor
    target: Tensor


class LatentPredictor(ImageDecoder):
    """An image decoder whose network denoises the latents of a frozen VAE, given features."""

    empty_features: Tensor
    """The empty condition: normalized features [N, K] from which guidance leads away."""

    def encode_latents(self, pixels: Tensor) -> Tensor:
        """Returns the normalized latents [B, C, h, w] of images [B, 3, P, P] in [-1, 1]."""
        raise NotImplementedError

    def add_noise(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> NoisyLatents:
        """Returns noisy latents on the path that the decoder follows in reverse.

        Args:
            latents: normalized latents, [B, C, h, w].
            noise: standard normal numbers of the same shape.
            sigma: noise levels in (0, 1], as shares of the trained steps, [B]; 1 is the noisiest.
        """
        raise NotImplementedError

    def predict(self, noisy: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        """Returns the network's prediction (noise or velocity), [B, C, h, w].

        Args:
            noisy: latents, scaled by the scheduler, [B, C, h, w].
            timestep: the scheduler's timestep, a scalar or [B].
            features: normalized features, [B, N, K].
        """
        raise NotImplementedError
