"""A model as the plug-ins for other evaluation kits need it: conversations in, a text or image out.

The texts and images of a turn follow each other as the kit has them, without added line breaks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Unpack

from PIL import Image

from blip3o.core.config import from_dict
from blip3o.core.rng import image_generator
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.requests import ImageInput
from blip3o.generate.text_settings import TextSettings
from blip3o.text.chat import IMAGE_IN_WORDS

Part = str | ImageInput
"""A text, or an image as a PIL image; files of images are `pathlib.Path`."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a conversation of a kit.

    Args:
        role: "system", "user" or "assistant".
        texts: the texts between the images: one more than there are images.
        images: the images in order.
    """

    role: str
    texts: tuple[str, ...]
    images: tuple[ImageInput, ...] = ()

    @property
    def message(self) -> Message:
        """The turn as the model reads it; a written mark of an image is no image."""
        texts = [text.replace(IMAGE_MARK, IMAGE_IN_WORDS) for text in self.texts]
        return Message(role=self.role, text=IMAGE_MARK.join(texts))


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An image that a kit asks for.

    Args:
        prompt: the prompt or instruction.
        images: images to edit; none for text to image.
        number: number of the document, which keys the noise.
        repeat: number of earlier images of the same document.
    """

    prompt: str
    images: tuple[ImageInput, ...]
    number: int
    repeat: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class KitSettings:
    """Settings that both plug-ins have; the defaults are those of the published table.

    Args:
        model: a bundled model's name, a model folder or a hub id.
        revision: branch, tag or commit of a hub model.
        device: "auto" or a torch device.
        dtype: precision of the weights, as for `Blip3oPipeline.from_pretrained`.
        quantize: "int8" or "int4" for the backbone; None leaves it.
        system_prompt: system turn of conversations without one; None for the model's own, which is
            "You are a helpful assistant." in the released models.
        min_pixels: smaller images are enlarged to this area, for towers of any shape.
        max_pixels: larger images are reduced to this area.
        max_new_tokens: longest answer, unless the task says otherwise.
        num_inference_steps: DiT steps; None for the model's own number.
        guidance_scale: guidance scale of images; None for the model's own.
        seed: seed of images, and of answers that are drawn.
    """

    model: str = "pocket"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    system_prompt: str | None = None
    min_pixels: int = 256 * 28 * 28
    max_pixels: int = 1_605_632
    max_new_tokens: int = 128
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 42


def settings_of(given: Mapping[str, object]) -> KitSettings:
    """Returns the settings of keyword arguments.

    Raises:
        UsageError: for an unknown name or a value of another type: a kit would not notice.
    """
    return from_dict(KitSettings, given, "settings")


def turn_of(role: str, parts: Sequence[tuple[bool, Part]]) -> Turn:
    """Returns a turn of its parts in order.

    Args:
        role: "system", "user" or "assistant".
        parts: (whether it is an image, the text or image).
    """
    texts, images = [""], []
    for is_image, part in parts:
        if is_image:
            images.append(part)
            texts.append("")
        else:
            texts[-1] += str(part)
    return Turn(role, tuple(texts), tuple(images))


class KitModel:
    """A model that answers conversations and draws images.

    Args:
        settings: the model and its settings.

    Raises:
        UsageError: as `Blip3oPipeline.from_pretrained`.
    """

    def __init__(self, settings: KitSettings) -> None:
        self._settings = settings
        self.pipe = Blip3oPipeline.from_pretrained(
            settings.model,
            revision=settings.revision,
            device=settings.device,
            dtype=settings.dtype,
            quantize=settings.quantize,
            overrides=[
                f"question_images.min_pixels={settings.min_pixels}",
                f"question_images.max_pixels={settings.max_pixels}",
            ],
        )

    def answer(self, turns: Sequence[Turn], **settings: Unpack[TextSettings]) -> str:
        """Returns the next answer of a conversation; greedy unless `settings` say otherwise.

        Raises:
            UsageError: as `TextPipeline.stream`.
        """
        messages = [turn.message for turn in turns]
        system = self._settings.system_prompt
        if system is not None and not any(one.role == "system" for one in messages):
            messages.insert(0, Message(role="system", text=system))
        images = [image for turn in turns for image in turn.images]
        full: TextSettings = {
            "max_new_tokens": self._settings.max_new_tokens,
            "seed": self._settings.seed,
            **settings,
        }
        return "".join(self.pipe.stream(messages, images, **full)).strip()

    def draw(self, drawings: Sequence[Drawing]) -> list[Image.Image]:
        """Returns the image of each drawing; all or none have images to edit.

        Raises:
            UsageError: as a call of the pipeline and `Blip3oPipeline.edit`.
        """
        prompts = [one.prompt for one in drawings]
        generators = [image_generator(self._settings.seed, d.number, d.repeat) for d in drawings]
        steps, scale = self._settings.num_inference_steps, self._settings.guidance_scale
        if not drawings[0].images:
            return self.pipe(
                prompts, generator=generators, num_inference_steps=steps, guidance_scale=scale
            ).images
        return self.pipe.edit(
            [one.images for one in drawings],
            prompts,
            generator=generators,
            num_inference_steps=steps,
            guidance_scale=scale,
        ).images
