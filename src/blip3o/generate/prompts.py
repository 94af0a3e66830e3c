"""Images, texts and noise of a call as the model takes them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.checks import check_prompt
from blip3o.generate.inputs import Generators, ImageInput, draw_noise, open_input
from blip3o.imaging.fit import aspect_pixels, keep_aspect
from blip3o.imaging.pixels import to_pixels
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.text.chat import ChatTemplate


def square_pixels(model: UnifiedModel, images: Sequence[ImageInput]) -> Tensor:
    """Returns images as pixels [M, 3, P, P] of the image encoder's size, in [-1, 1].

    Args:
        model: says the size, the device and the type.
        images: one or more; other shapes are stretched, as in the released inference.

    Raises:
        UsageError: for an image that cannot be read.
    """
    side = model.config.image_encoder.image_px
    pixels = torch.stack([to_pixels(open_input(one), side) for one in images])
    return pixels.to(model.query_tokens.weight)


def question_pixels(
    model: UnifiedModel, images: Sequence[ImageInput]
) -> tuple[Tensor | list[Tensor] | None, list[int] | None]:
    """Returns images of questions, fitted as the model's config says, and their token counts.

    Args:
        model: says how, and the device and the type.
        images: any number.

    Returns:
        Squares [M, 3, P, P] or images [3, H, W] of their own shapes; None for no images. And
        the tokens that stand for each image, None where all have the chat template's number.

    Raises:
        UsageError: for an image that cannot be read.
    """
    if not images:
        return None, None
    fit, weight = model.config.question_images, model.query_tokens.weight
    opened = [open_input(one) for one in images]
    if fit.mode != "aspect":
        side = model.config.image_encoder.image_px
        return torch.stack([to_pixels(one, side, fit.mode) for one in opened]).to(weight), None
    token_px = model.config.backbone.token_px
    pixels = [aspect_pixels(one, token_px, fit).to(weight) for one in opened]
    return pixels, question_token_counts(model.config, [one.size for one in opened])


def question_token_counts(
    config: UnifiedModelConfig, sizes: Sequence[tuple[int, int]]
) -> list[int] | None:
    """Returns how many tokens stand for each image of a question, as `question_pixels` does.

    Args:
        config: of the model.
        sizes: width and height of each image in pixels, turned upright or not.

    Returns:
        None where all have the chat template's number.

    Raises:
        UsageError: for an image too thin to be looked at.
    """
    fit = config.question_images
    if fit.mode != "aspect" or not sizes:
        return None
    token_px = config.backbone.token_px
    fitted = [keep_aspect(size, token_px, fit.min_pixels, fit.max_pixels) for size in sizes]
    return [width * height // token_px**2 for width, height in fitted]


def drawing_prompt(
    model: UnifiedModel, chat: ChatTemplate, messages: Sequence[Message], text: str
) -> list[int]:
    """Returns the token ids after which the query tokens of an image stand.

    Args:
        model: says how long a prompt may be.
        chat: its chat format.
        messages: the conversation that asks for the image.
        text: what the user said in it.

    Raises:
        UsageError: for an empty or over-long text, or one that holds an image mark.
    """
    check_prompt(text)
    if IMAGE_MARK in text:
        raise UsageError(f"{IMAGE_MARK} in a prompt; images are given beside the text")
    row = chat.image_prompt(messages)
    check_length(model, row, "the prompt")
    return row


def check_length(model: UnifiedModel, row: list[int], what: str) -> None:
    """Checks that a prompt leaves room for the query tokens, and an answer for some words.

    Raises:
        UsageError: if it does not; `what` names it.
    """
    limit = model.config.backbone.max_positions - model.config.num_query_tokens
    if len(row) > limit:
        raise UsageError(f"{what} has {len(row)} tokens; at most {limit} fit this model")


def model_noise(model: UnifiedModel, count: int, generator: Generators) -> tuple[Tensor, ...]:
    """Returns what the DiT and the image decoder start from, [B, N, K] and [B, *noise_shape].

    Args:
        model: says the shapes, the device and the type.
        count: images (B).
        generator: see `draw_noise`.

    Raises:
        UsageError: for another number of generators.
    """
    shapes = (model.config.feature_shape, model.config.image_decoder.noise_shape)
    weight = model.query_tokens.weight
    return tuple(noise.to(weight) for noise in draw_noise(shapes, count, generator))
