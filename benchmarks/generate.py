"""Measures the bundled model: commands from process start to exit, and images of a warm process.

Four prompts, 24 steps. `command` starts a process; `warm` holds the model.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator

import torch
from measure import Case, Options, main

PROMPTS = (
    "a red car",
    "three yellow stars",
    "a blue cat to the left of a green tree",
    "a purple guitar and an orange crown",
)
STEPS = 24


def command(options: Options) -> Iterator[Case]:
    """Commands of a new process."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["generate", *PROMPTS, "--out", folder, "--steps", str(options.pick(STEPS, 1))]

        def start(*words: str) -> None:
            command = [sys.executable, *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        yield Case(
            unit="process",
            variants={
                "import": lambda: start("-c", "import blip3o"),
                "help": lambda: start("-m", "blip3o", "--help"),
                "generate": lambda: start("-m", "blip3o", *words),
            },
        )


def warm(options: Options) -> Iterator[Case]:
    """Four images in a process that holds the model."""
    from blip3o import Blip3oPipeline

    pipe = Blip3oPipeline.from_pretrained("pocket", device=str(options.device))
    steps = options.pick(STEPS, 1)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]

    def draw(prompts: list[str], seeds: list[torch.Generator]) -> torch.Tensor:
        images = pipe(prompts, generator=seeds, num_inference_steps=steps, output_type="pt").images
        assert isinstance(images, torch.Tensor)
        return images

    def one_by_one() -> torch.Tensor:
        pairs = zip(PROMPTS, generators(), strict=True)
        return torch.cat([draw([prompt], [seed]) for prompt, seed in pairs])

    yield Case(
        unit="image",
        work=len(PROMPTS),
        variants={
            "one_by_one": one_by_one,
            "batch_of_4": lambda: draw(list(PROMPTS), generators()),
        },
        difference=lambda one, other: float((one - other).abs().mean()),
        tolerance=0.01,
        facts={"steps": steps, "dtype": str(pipe.dtype)},
    )


if __name__ == "__main__":
    main(__doc__, {"command": command, "warm": warm})
