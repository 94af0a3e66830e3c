"""What a run shows of itself while it trains: images for images, words for words."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from blip3o.core.files import atomic_file, write_atomic
from blip3o.data.loader import Loader
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.imaging.sheet import contact_sheet
from blip3o.models.unified import UnifiedModel
from blip3o.text.tokenizer import Tokenizer
from blip3o.train.adapters import merged_adapters
from blip3o.train.callbacks import Callback
from blip3o.train.trainer import Trainer

_ROWS = 8


class SampleWriter(Callback):
    """Writes `samples/step-XXXXXXXX.png`, or `.txt` and `-asked.png`, with the averaged weights.

    A run without prompts of its own draws the first captions of its data.

    Args:
        tokenizer: the model's.
        loader: its first images are what is reconstructed, edited and asked about.
    """

    def __init__(self, tokenizer: Tokenizer, loader: Loader) -> None:
        self._tokenizer = tokenizer
        self._loader = loader

    def on_sample(self, trainer: Trainer, step: int) -> None:
        """Draws samples of what the run trains; the trainer has put the averages in place.

        Args:
            trainer: the run.
            step: number of steps done.
        """
        model = trainer.model
        assert isinstance(model, UnifiedModel)
        path = trainer.run_dir / "samples" / f"step-{step:08d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds = {objective.kind for objective in trainer.config.objectives}
        was_training = [module for module in model.modules() if module.training]
        try:
            with merged_adapters(model), torch.no_grad():
                pipe = Blip3oPipeline(model, self._tokenizer)
                prompts = trainer.config.sample_prompts
                if "pixel_decoding" in kinds:
                    self._reconstructions(pipe, path)
                if "flow_matching" in kinds:
                    self._drawings(pipe, prompts or self._loader.first_captions(_ROWS), path)
                if "next_token" in kinds and prompts:
                    self._answers(pipe, prompts, path)
        finally:
            for module in was_training:
                module.training = True

    def _drawings(self, pipe: Blip3oPipeline, prompts: Sequence[str], path: Path) -> None:
        if not prompts:  # nothing is drawn from captions
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
        if not found:  # conversations without images
            return
        asked = list(itertools.islice(itertools.cycle(found), len(questions)))
        answers = pipe.answer_batch(asked, questions)
        lines = [f"{q}  ->  {a}" for q, a in zip(questions, answers, strict=True)]
        write_atomic(path.with_suffix(".txt"), "\n".join(lines) + "\n")
        _save(asked, lines, path.with_name(f"{path.name}-asked"))  # beside what was drawn


def _save(images: Sequence[Image.Image], captions: Sequence[str], path: Path) -> None:
    with atomic_file(path.with_suffix(".png")) as scratch:
        contact_sheet(images, captions, columns=4, scale=2).save(scratch, "PNG")
