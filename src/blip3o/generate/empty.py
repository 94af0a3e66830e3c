"""The empty condition of an image decoder, computed on first use if none is stored."""

import torch
from torch import Tensor

from blip3o.generate.draw import draw
from blip3o.generate.requests import draw_noise
from blip3o.models.absent import AbsentPart
from blip3o.models.prompts import Prompts
from blip3o.models.unified import UnifiedModel
from blip3o.text.tokenizer import Tokenizer

_SEED = 0


@torch.no_grad()
def empty_condition(model: UnifiedModel, tokenizer: Tokenizer) -> Tensor | None:
    """Returns normalized features [1, N, K] from which the image decoder's guidance pushes away.

    The released pipeline draws them once, from the bare text " " without chat format and with
    unseeded noise. Here the noise is fixed, so the same prompt always gives the same image.

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
    prompt = model.config.image_decoder.empty_prompt
    if prompt is None or bool(decoder.empty_features.any()):
        return None
    row = [*tokenizer.encode(prompt), tokenizer.image_start_id]
    ids = torch.tensor([row], device=model.device)
    plan = model.plan(Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool()))
    generator = torch.Generator().manual_seed(_SEED)
    (noise,) = draw_noise([model.config.feature_shape], 1, generator)
    sampling = model.config.sampling
    return draw(plan, noise.to(model.device, model.dtype), sampling.guidance_scale, sampling)
