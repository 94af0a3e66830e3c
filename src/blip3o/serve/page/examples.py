"""Examples that the page offers."""

from pathlib import Path

from blip3o.data.scenes.render import render
from blip3o.data.scenes.types import Placed, Scene

PROMPTS = (
    "a red car",
    "three yellow ducks",
    "a red rabbit to the left of a green tree",
    "a blue dog to the left of a red car",
)
"""Prompts that the bundled model draws well with any seed; a test checks all examples."""
QUESTION = "Describe the image in detail."
INSTRUCTIONS = ("remove the tree", "make the car green", "remove the crown")

SCENES = (
    Scene(
        background="light blue",
        objects=(
            Placed(thing="cat", color="blue", x=0.28, y=0.5, size=0.42),
            Placed(thing="tree", color="green", x=0.74, y=0.5, size=0.42),
        ),
    ),
    Scene(background="cream", objects=(Placed(thing="car", color="red", x=0.5, y=0.5, size=0.5),)),
    Scene(
        background="lavender",
        objects=(
            Placed(thing="guitar", color="purple", x=0.28, y=0.28, size=0.42),
            Placed(thing="crown", color="orange", x=0.72, y=0.72, size=0.32),
        ),
    ),
)
"""Scenes of the example images."""
_SIDE_PX = 384
_NAMES = ("cat-and-tree", "car", "guitar-and-crown")


def example_images(folder: Path) -> list[str]:
    """Writes the example images to a folder and returns their paths."""
    paths = []
    for name, scene in zip(_NAMES, SCENES, strict=True):
        path = folder / f"{name}.png"
        render(scene, _SIDE_PX).save(path)
        paths.append(str(path))
    return paths
