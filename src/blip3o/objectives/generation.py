"""The model's side of a generation batch: target features, target pixels and prompts."""

from torch import Tensor

from blip3o.core.types import Batch
from blip3o.models.prompts import PromptImages, Prompts
from blip3o.models.unified import UnifiedModel


def clean_features(model: UnifiedModel, batch: Batch) -> Tensor:
    """Returns the normalized features of the target images, [B, N, K].

    Raises:
        ValueError: if the batch has neither target pixels nor target features.
    """
    if batch.target_features is not None:
        return model.normalizer(batch.target_features.float())
    if batch.target_pixels is None:
        raise ValueError(f"a {batch.task!r} batch needs target pixels or features")
    return model.normalizer(model.encode_images(batch.target_pixels).float())


def decoder_pixels(batch: Batch) -> Tensor:
    """Returns the target images at the size of the image decoder, [B, 3, Q, Q] in [-1, 1].

    Raises:
        ValueError: if the batch has no target pixels.
    """
    found = batch.target_pixels if batch.decoder_pixels is None else batch.decoder_pixels
    if found is None:
        raise ValueError(f"a {batch.task!r} batch needs target pixels to train the decoder")
    return found


def prompts_of(model: UnifiedModel, batch: Batch) -> Prompts:
    """Returns the prompts of a batch, with their images and the features of the image to edit."""
    images = model.prompt_images(batch.prompt_pixels, batch.prompt_features)
    return Prompts(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        images=images,
        reference=_reference(model, batch, images),
    )


def _reference(model: UnifiedModel, batch: Batch, images: PromptImages | None) -> Tensor | None:
    if batch.reference_rows is None:
        return None
    known = batch.prompt_features if batch.prompt_features is not None else images
    reference = model.reference(batch.prompt_pixels, known)
    return None if reference is None else reference[batch.reference_rows]
