"""What a pipeline returns, in the form that was asked for."""

import dataclasses
from typing import Any, Literal

import numpy as np
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.generate.checks import check_guidance, check_steps
from blip3o.generate.draw import decode_features
from blip3o.imaging.pixels import to_image
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig

OutputType = Literal["pil", "np", "pt", "features"]


@dataclasses.dataclass(frozen=True)
class ImageOutput:
    """What a call of the pipeline returns.

    Args:
        images: PIL images, or float arrays [B, P, P, 3] in [0, 1] ("np"), or tensors
            [B, 3, P, P] in [0, 1] ("pt"), or normalized features [B, N, K] ("features"); image k
            of prompt p is number p * num_images_per_prompt + k.
    """

    images: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """How features become pixels.

    Args:
        num_steps: steps of the image decoder.
        guidance_scale: 1 follows the features alone; None for a decoder without guidance, or its
            own number.
    """

    num_steps: int
    guidance_scale: float | None = None


def decoding_settings(
    config: UnifiedModelConfig, num_steps: int | None, guidance_scale: float | None
) -> DecodingSettings:
    """Returns the numbers of a call, checked.

    Args:
        config: of the model.
        num_steps: None for the model's own number.
        guidance_scale: None for the decoder's own number.

    Raises:
        UsageError: for a number out of range, or guidance of a decoder that has none.
    """
    steps = config.sampling.num_decoder_steps if num_steps is None else num_steps
    check_steps("num_decoder_steps", steps)
    if guidance_scale is not None:
        if config.image_decoder.guidance_scale is None:
            raise UsageError(f"the image decoder {config.image_decoder.kind!r} is not guided")
        check_guidance("decoder_guidance_scale", guidance_scale)
    return DecodingSettings(num_steps=steps, guidance_scale=guidance_scale)


def finish(
    model: UnifiedModel,
    features: Tensor,
    decoder_noise: Tensor,
    decoding: DecodingSettings,
    output_type: OutputType,
    empty_features: Tensor | None = None,
) -> ImageOutput:
    """Returns what a call returns for normalized features [B, N, K].

    Args:
        model: in evaluation mode.
        features: what was sampled.
        decoder_noise: what the image decoder starts from, [B, *noise_shape].
        decoding: how.
        output_type: the form.
        empty_features: see `decode_features`.
    """
    if output_type == "features":
        return ImageOutput(features)
    pixels = decode_features(
        model,
        features,
        decoder_noise,
        decoding.num_steps,
        empty_features=empty_features,
        guidance_scale=decoding.guidance_scale,
    )
    pixels = pixels.float().cpu()
    if output_type == "pil":
        return ImageOutput(to_image(pixels))
    unit = (pixels + 1) / 2
    if output_type == "pt":
        return ImageOutput(unit)
    return ImageOutput(np.ascontiguousarray(unit.permute(0, 2, 3, 1).numpy()))


def describe_parts(model: UnifiedModel) -> list[str]:
    """Returns a line for each part of a model: its name, class and millions of parameters.

    Args:
        model: the model.
    """
    lines = []
    for name, part in model.named_children():
        numbers = sum(one.numel() for one in {*part.parameters(), *part.buffers()})
        lines.append(f"  {name}: {type(part).__name__}, {numbers / 1e6:.2f} M parameters")
    return lines
