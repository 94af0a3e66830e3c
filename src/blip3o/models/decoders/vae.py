"""A VAE's decoder: latents that were generated as feature tokens, back to pixels.

It is the counterpart of the `vae` image encoder, and needs neither noise nor steps.
"""

import dataclasses

from torch import Tensor

from blip3o.models.autoencoders import (
    KlAutoencoderConfig,
    SizedAutoencoder,
    decode,
    features_to_latents,
    latents_to_pixels,
    set_low_memory,
)
from blip3o.models.protocols import DecoderDefaults, ImageDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeDecoderConfig(SizedAutoencoder, DecoderDefaults):
    """A VAE's decoder at one image size; see `SizedAutoencoder` for the fields."""

    @property
    def feature_channels(self) -> int:
        """Channels of the features, which are those of the latents."""
        return self.autoencoder.latent_channels

    @property
    def reads_raw(self) -> bool:
        """True: the decoder inverts the encoder, whatever normalizer a generator works behind."""
        return True

    @property
    def noise_shape(self) -> tuple[int]:
        """Shape of the noise of one image: empty."""
        return (0,)

    @classmethod
    def published(cls) -> "VaeDecoderConfig":
        """Returns FLUX.1's VAE at 512 px, whose latents BLIP3-o's VAE variant generates."""
        return cls(image_px=512, autoencoder=KlAutoencoderConfig.flux())

    def build(self) -> "VaeDecoder":
        """Returns the decoder with fresh weights; raises UsageError without diffusers."""
        return VaeDecoder(self)


class VaeDecoder(ImageDecoder):
    """The `vae` encoder's features [B, N, C], row by row, to pixels [B, 3, P, P].

    Weight names are those of the published autoencoder after `vae.`, without its encoder half
    (`encoder.`, `quant_conv.`).

    Args:
        config: the VAE and the image size.

    Reference:
        BLIP3-o section 3.2 (VAE + flow matching).
    """

    def __init__(self, config: VaeDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = config.autoencoder.build()
        for encoding in ("encoder", "quant_conv"):
            setattr(self.vae, encoding, None)

    def decode(
        self, features: Tensor, noise: Tensor, num_inference_steps: int, **guidance: object
    ) -> Tensor:
        """Returns images [B, 3, P, P] in [-1, 1] for features; the other arguments are not used."""
        del noise, num_inference_steps, guidance
        latents = features_to_latents(features, self.config.autoencoder, self.config.grid)
        return latents_to_pixels(self.vae, latents)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Returns images [B, 3, P, P] for latents [B, C, G, G] of the encoder's posterior.

        Values are not clipped to [-1, 1], because a clipped value has no gradient.
        """
        return decode(self.vae, latents)

    def set_low_memory(self, *, sliced: bool = True, tiled: bool = True) -> None:
        """Sets how the VAE decodes; see `autoencoders.set_low_memory`."""
        set_low_memory(self.vae, sliced=sliced, tiled=tiled)
