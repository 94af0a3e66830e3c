"""What a pipeline returns, in the form that was asked for."""

import dataclasses
from typing import Any, Literal

import numpy as np
from torch import Tensor

from blip3o.generate.images import decode_features
from blip3o.imaging.pixels import to_image
from blip3o.models.unified import UnifiedModel

OutputType = Literal["pil", "np", "pt", "features"]


@dataclasses.dataclass(frozen=True)
class ImageOutput:
    """What a call of the pipeline returns.

    Args:
        images: PIL pictures, or float arrays [B, P, P, 3] in [0, 1] ("np"), or tensors
            [B, 3, P, P] in [0, 1] ("pt"), or normalized features [B, N, K] ("features"); image k
            of prompt p is number p * num_images_per_prompt + k.
    """

    images: Any


def finish(
    model: UnifiedModel,
    features: Tensor,
    decoder_noise: Tensor,
    output_type: OutputType,
    empty_features: Tensor | None = None,
) -> Any:  # noqa: ANN401  (see ImageOutput)
    """Returns what `ImageOutput.images` holds for normalized features [B, N, K].

    Args:
        model: in evaluation mode.
        features: what was sampled.
        decoder_noise: what the image decoder starts from, [B, *noise_shape].
        output_type: the form.
        empty_features: see `decode_features`.
    """
    if output_type == "features":
        return features
    steps = model.config.sampling.num_decoder_steps
    pixels = decode_features(model, features, decoder_noise, steps, empty_features).float().cpu()
    if output_type == "pil":
        return to_image(pixels)
    unit = (pixels + 1) / 2
    if output_type == "pt":
        return unit
    return np.ascontiguousarray(unit.permute(0, 2, 3, 1).numpy())
