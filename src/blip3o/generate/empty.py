"""The empty condition of an image decoder, made on first use where none is stored."""

import torch

from blip3o.generate.images import sample_features
from blip3o.generate.inputs import draw_noise
from blip3o.models.absent import AbsentPart
from blip3o.models.unified import UnifiedModel
from blip3o.text.tokenizer import Tokenizer

_SEED = 0


@torch.no_grad()
def prepare_decoder(model: UnifiedModel, tokenizer: Tokenizer) -> None:
    """Fills the image decoder's empty condition if it is to be made of a prompt and is zeros.

    The released pipeline makes it once, of the bare text " " without chat format, with whatever
    random numbers come; here the noise is fixed, so the same prompt always gives the same picture.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.

    Raises:
        UsageError: if the model has no image decoder.
    """
    decoder = model.image_decoder
    if isinstance(decoder, AbsentPart):
        decoder.decode()
    prompt = getattr(model.config.image_decoder, "empty_prompt", None)
    if prompt is None or bool(decoder.empty_features.any()):
        return
    queries = model.query_tokens.weight
    ids = torch.tensor([[*tokenizer.encode(prompt), tokenizer.image_start_id]])
    ids = ids.to(queries.device)
    condition = model.condition(ids, torch.ones_like(ids, dtype=torch.bool))
    generator = torch.Generator().manual_seed(_SEED)
    (noise,) = draw_noise([model.config.feature_shape], 1, generator)
    features = sample_features(
        model,
        condition,
        noise.to(queries),
        num_inference_steps=model.config.sampling.num_inference_steps,
        guidance_scale=model.config.sampling.guidance_scale,
    )
    decoder.empty_features.copy_(features[0])
