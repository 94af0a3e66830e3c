"""Shows the main tasks in one minute: four prompts, a description, an edit and a contact sheet.

Run `make demo` or `python examples/demo.py [--out FOLDER]`. The demo uses the bundled pocket model
and needs neither a network nor a GPU.
"""

import argparse
import time
from pathlib import Path

import torch

from blip3o import Blip3oPipeline
from blip3o.imaging.sheet import contact_sheet

PROMPTS = (
    "a red car",
    "three yellow ducks",
    "a red rabbit to the left of a green tree",
    "a blue dog to the left of a red car",
)
QUESTION = "Describe the image in detail."
INSTRUCTION = "make the car green"


def main() -> None:
    """Generates, describes and edits images and prints the path of the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    out = parser.parse_args().out
    start = time.perf_counter()
    pipe = Blip3oPipeline.from_pretrained("pocket")
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    images = pipe(PROMPTS, generator=generators).images
    description = pipe.ask(images[2], QUESTION)
    edited = pipe.edit(images[0], INSTRUCTION, generator=torch.Generator().manual_seed(0)).images[0]
    sheet = contact_sheet(
        [*images, images[2], edited],
        [*PROMPTS, f"asked to describe: {description}", f"first image: {INSTRUCTION}"],
        columns=3,
        scale=2,
    )
    out.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate([*images, edited]):
        image.save(out / f"{number:04d}.png")
    sheet.save(out / "sheet.png")
    for prompt in PROMPTS:
        print(f"drew: {prompt}")
    print(f"described the third image: {description}")
    print(f"edited the first image: {INSTRUCTION}")
    print(f"contact sheet: {(out / 'sheet.png').resolve()} ({time.perf_counter() - start:.1f} s)")


if __name__ == "__main__":
    main()
