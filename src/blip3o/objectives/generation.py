"""The model's side of a generation batch: targets, prompts, and rows of both in turn."""

from torch import Tensor

from blip3o.core.types import Batch
from blip3o.models.prompts import PromptImages, Prompts, Rows
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


def num_targets(batch: Batch) -> int:
    """Returns the number of images that the loss covers: one in each row, or those of `places`."""
    if batch.places is None:
        return len(batch)
    return sum(place.is_target for places in batch.places for place in places)


def rows_of(model: UnifiedModel, batch: Batch) -> tuple[Rows, Tensor]:
    """Returns the rows of a batch of text and images in turn, and features of the drawn images.

    Returns:
        The rows, and the normalized features of the D drawn images, [D, N, K].

    Raises:
        ValueError: if the batch has no places of images or no pixels.
    """
    pixels = batch.prompt_pixels
    if batch.places is None or not isinstance(pixels, Tensor):
        raise ValueError(f"a {batch.task!r} batch needs the places and pixels of its images")
    images = model.prompt_images(pixels)
    rows = Rows(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        places=batch.places,
        images=images,
    )
    is_drawn = [place.is_drawn for places in batch.places for place in places]
    chosen = [number for number, one in enumerate(is_drawn) if one]
    raw = images[chosen] if isinstance(images, Tensor) else model.encode_images(pixels[chosen])
    return rows, model.normalizer(raw.float())
