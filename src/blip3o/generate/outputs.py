"""Features to results: decoding, the forms of a result, and the decoder's empty condition."""

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.rng import generator
from blip3o.generate.checks import check_guidance, check_steps
from blip3o.generate.draw import draw
from blip3o.generate.requests import draw_noise
from blip3o.imaging.pixels import to_image
from blip3o.models.absent import AbsentPart
from blip3o.models.prompts import Prompts
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.text.tokenizer import Tokenizer

OutputType = Literal["pil", "np", "pt", "features"]

_EMPTY_SEED = 0


@dataclasses.dataclass(frozen=True)
class ImageOutput:
    """The result of a call of the pipeline.

    Args:
        images: PIL images ("pil"), float arrays [B, P, P, 3] in [0, 1] ("np"), tensors
            [B, 3, P, P] in [0, 1] ("pt"), or normalized features [B, N, K] ("features"). Image k
            of prompt p has index p * num_images_per_prompt + k.
    """

    images: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """Settings of the image decoder.

    Args:
        num_steps: steps of the image decoder.
        guidance_scale: 1 turns guidance off; None for the decoder's own number.
    """

    num_steps: int
    guidance_scale: float | None = None


def decoding_settings(
    config: UnifiedModelConfig, num_steps: int | None, guidance_scale: float | None
) -> DecodingSettings:
    """Returns the decoding settings of a call, checked.

    Args:
        config: config of the model.
        num_steps: steps of the image decoder; None for the model's own number.
        guidance_scale: guidance scale of the image decoder; None for its own number.

    Raises:
        UsageError: for a number out of range, or a guidance scale for a decoder without guidance.
    """
    steps = config.num_decoder_steps if num_steps is None else num_steps
    check_steps("num_decoder_steps", steps)
    if guidance_scale is not None:
        if config.image_decoder.guidance_scale is None:
            raise UsageError(f"the image decoder {config.image_decoder.kind!r} is not guided")
        check_guidance("decoder_guidance_scale", guidance_scale)
    return DecodingSettings(num_steps=steps, guidance_scale=guidance_scale)


@torch.no_grad()
def finish(
    model: UnifiedModel,
    features: Tensor,
    decoder_noise: Tensor,
    decoding: DecodingSettings,
    output_type: OutputType,
    empty_features: Tensor | None = None,
) -> ImageOutput:
    """Returns normalized features in the form that a call asks for, decoded if it is an image.

    Args:
        model: the model, in evaluation mode.
        features: normalized features, [B, N, K].
        decoder_noise: start of the image decoder, standard normal, [B, *noise_shape].
        decoding: settings of the image decoder.
        output_type: form of the result.
        empty_features: features from which guidance pushes away, [1, N, K]; None if the decoder
            has its own.
    """
    if output_type == "features":
        return ImageOutput(features)
    pixels = model.image_decoder.decode(
        model.decoder_features(features),
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


@torch.no_grad()
def empty_condition(model: UnifiedModel, tokenizer: Tokenizer) -> Tensor | None:
    """Returns normalized features [1, N, K] from which the image decoder's guidance pushes away.

    The released pipeline draws them once, from the text " " without chat format and with unseeded
    noise. Here the noise is fixed, so the same prompt always gives the same image.

    Args:
        model: the model, in evaluation mode.
        tokenizer: the model's tokenizer.

    Returns:
        None if the decoder has its own.

    Raises:
        UsageError: if the model has no image decoder.
    """
    decoder = model.image_decoder
    if isinstance(decoder, AbsentPart):
        decoder.decode()
    prompt = model.config.image_decoder.empty_prompt
    if prompt is None or bool(decoder.get_buffer("empty_features").any()):
        return None
    row = [*tokenizer.encode(prompt), tokenizer.image_start_id]
    ids = torch.tensor([row], device=model.device)
    plan = model.plan(Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool()))
    (noise,) = draw_noise([model.config.feature_shape], 1, generator(_EMPTY_SEED))
    sampling = model.config.sampling
    return draw(plan, noise.to(model.device, model.dtype), sampling.guidance_scale, sampling)
