"""Draws a scene: three times as large, then downsampled, so that edges are smooth."""

from PIL import Image

from blip3o.data.scenes.backgrounds import background_picture
from blip3o.data.scenes.things import colored_sprite
from blip3o.data.scenes.types import Scene

_OVERSAMPLE = 3


def render(scene: Scene, px: int = 96) -> Image.Image:
    """Returns the scene as an RGB picture of px x px; equal scenes give equal bytes.

    Args:
        scene: what to draw.
        px: side of the picture in pixels.

    """
    big = px * _OVERSAMPLE
    canvas = background_picture(scene.background, big).copy()
    for placed in scene.objects:
        picture = colored_sprite(placed.thing, placed.color)
        scale = placed.size * big / max(picture.size)
        width = max(1, round(picture.width * scale))
        height = max(1, round(picture.height * scale))
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        corner = (round(placed.x * big - width / 2), round(placed.y * big - height / 2))
        canvas.paste(picture, corner, picture)
    return canvas.reduce(_OVERSAMPLE)
