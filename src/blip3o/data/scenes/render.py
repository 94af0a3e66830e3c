"""Draws scenes at three times the size and downsamples them, for smooth edges."""

from PIL import Image

from blip3o.data.scenes.things import background_image, colored_sprite
from blip3o.data.scenes.types import Scene

_OVERSAMPLE = 3


def render(scene: Scene, px: int = 96) -> Image.Image:
    """Returns the scene as an RGB image of px x px pixels; equal scenes give equal bytes."""
    big = px * _OVERSAMPLE
    canvas = background_image(scene.background, big).copy()
    for placed in scene.objects:
        image = colored_sprite(placed.thing, placed.color)
        scale = placed.size * big / max(image.size)
        width = max(1, round(image.width * scale))
        height = max(1, round(image.height * scale))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        corner = (round(placed.x * big - width / 2), round(placed.y * big - height / 2))
        canvas.paste(image, corner, image)
    return canvas.reduce(_OVERSAMPLE)
