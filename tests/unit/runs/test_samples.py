"""Samples during training: images and answers do not overwrite each other."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.runs.samples import SampleWriter
from blip3o.text.tokenizer import Tokenizer


class Images:
    """A loader of a given number of images."""

    def __init__(self, count: int) -> None:
        self.count = count

    def first_images(self, count: int) -> list[Image.Image]:
        return [Image.new("RGB", (16, 16), "red")] * min(self.count, count)


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_a_joint_run_writes_images_and_answers(
    tiny_pipe: Blip3oPipeline,
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_images: int,
) -> None:
    monkeypatch.setattr(Blip3oPipeline, "__call__", draw_blue)
    objectives: Any = [SimpleNamespace(samples=kind) for kind in ("images", "answers")]
    config = SimpleNamespace(sample_prompts=("a cat", "a dog"))
    trainer: Any = SimpleNamespace(model=tiny_pipe.model, run_dir=tmp_path, config=config)
    loader: Any = Images(num_images)
    SampleWriter(tiny_tokenizer, loader, objectives).on_sample(trainer, 2)
    folder = tmp_path / "samples"
    with Image.open(folder / "step-00000002.png") as sheet:
        assert (0, 0, 255) in {color for _, color in sheet.convert("RGB").getcolors(1 << 20) or ()}
    assert (folder / "step-00000002-asked.png").exists() == (num_images > 0)
    if num_images:
        text = (folder / "step-00000002.txt").read_text(encoding="utf-8")
        assert text.count("a cat  ->") == text.count("a dog  ->") == 1


def draw_blue(pipe: Blip3oPipeline, prompts: list[str], **options: object) -> SimpleNamespace:
    return SimpleNamespace(images=[Image.new("RGB", (16, 16), "blue") for _ in prompts])
