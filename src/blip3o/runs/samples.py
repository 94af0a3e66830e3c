"""Writes samples during training: images for prompts, reconstructions, or answers."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from blip3o.core.files import atomic_file, write_atomic
from blip3o.data.loader import Loader
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.imaging.sheet import contact_sheet
from blip3o.models.unified import UnifiedModel
from blip3o.objectives import Objective
from blip3o.text.tokenizer import Tokenizer
from blip3o.train.adapters import merged_adapters
from blip3o.train.callbacks import Callback, Training

_ROWS = 8


class SampleWriter(Callback):
    """Writes `samples/step-XXXXXXXX.png` for images, or `.txt` and `-asked.png` for answers.

    A run without `sample_prompts` draws the first captions of its data.

    Args:
        tokenizer: the model's tokenizer.
        loader: provides the first images of the data, to reconstruct or to ask about.
        objectives: objectives of the run; each names the samples that show its progress.
    """

    def __init__(
        self, tokenizer: Tokenizer, loader: Loader, objectives: Iterable[Objective]
    ) -> None:
        self._tokenizer = tokenizer
        self._loader = loader
        self._kinds = {objective.samples for objective in objectives}

    def on_sample(self, trainer: Training, step: int) -> None:
        """Writes the samples of a step with the averaged weights, which the model now holds."""
        model = trainer.model
        assert isinstance(model, UnifiedModel)
        path = trainer.run_dir / "samples" / f"step-{step:08d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        was_training = [module for module in model.modules() if module.training]
        try:
            with merged_adapters(model), torch.no_grad():
                pipe = Blip3oPipeline(model, self._tokenizer)
                prompts = trainer.config.sample_prompts
                if "reconstructions" in self._kinds:
                    self._reconstructions(pipe, path)
                if "images" in self._kinds:
                    self._drawings(pipe, prompts or self._loader.first_captions(_ROWS), path)
                if "answers" in self._kinds and prompts:
                    self._answers(pipe, prompts, path)
        finally:
            for module in was_training:
                module.training = True

    def _drawings(self, pipe: Blip3oPipeline, prompts: Sequence[str], path: Path) -> None:
        if not prompts:  # the data have no captions
            return
        generators = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
        _save(pipe(prompts, generator=generators).images, prompts, path)

    def _reconstructions(self, pipe: Blip3oPipeline, path: Path) -> None:
        before = self._loader.first_images(_ROWS)
        generators = [torch.Generator().manual_seed(n) for n in range(len(before))]
        after = pipe.reconstruct(before, generator=generators).images
        pairs = [image for pair in zip(before, after, strict=True) for image in pair]
        _save(pairs, ["image", "reconstructed"] * len(before), path)

    def _answers(self, pipe: Blip3oPipeline, questions: Sequence[str], path: Path) -> None:
        found = self._loader.first_images(len(questions))
        if not found:  # the conversations have no images
            return
        asked = list(itertools.islice(itertools.cycle(found), len(questions)))
        answers = pipe.answer_batch(asked, questions)
        lines = [f"{q}  ->  {a}" for q, a in zip(questions, answers, strict=True)]
        write_atomic(path.with_suffix(".txt"), "\n".join(lines) + "\n")
        _save(asked, lines, path.with_name(f"{path.name}-asked"))


def _save(images: Sequence[Image.Image], captions: Sequence[str], path: Path) -> None:
    with atomic_file(path.with_suffix(".png")) as scratch:
        contact_sheet(images, captions, columns=4, scale=2).save(scratch, "PNG")
