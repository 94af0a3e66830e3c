"""The empty condition of an image decoder, made on first use where none is stored."""

import torch
from torch import Tensor

from blip3o.generate.images import sample_features
from blip3o.generate.inputs import draw_noise
from blip3o.models.absent import AbsentPart
from blip3o.models.unified import UnifiedModel
from blip3o.text.tokenizer import Tokenizer

_SEED = 0


@torch.no_grad()
def empty_condition(model: UnifiedModel, tokenizer: Tokenizer) -> Tensor | None:
    """Returns normalized features [1, N, K] that the image decoder is guided away from.

    The released pipeline makes them once, of the bare text " " without chat format, with whatever
    random numbers come; here the noise is fixed, so the same prompt always gives the same image.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.

    Returns:
        None if the decoder has its own.

    Raises:
        UsageError: if the model has no image decoder.
    """
    decoder = model.image_decoder
    if isinstance(decoder, AbsentPart):
        decoder.decode()
    prompt = getattr(model.config.image_decoder, "empty_prompt", None)
    if prompt is None or bool(decoder.empty_features.any()):
        return None
    place = model.query_tokens.weight
    ids = torch.tensor([[*tokenizer.encode(prompt), tokenizer.image_start_id]], device=place.device)
    condition = model.condition(ids, torch.ones_like(ids, dtype=torch.bool))
    generator = torch.Generator().manual_seed(_SEED)
    (noise,) = draw_noise([model.config.feature_shape], 1, generator)
    return sample_features(
        model,
        condition,
        noise.to(place),
        num_inference_steps=model.config.sampling.num_inference_steps,
        guidance_scale=model.config.sampling.guidance_scale,
    )
