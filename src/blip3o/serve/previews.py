"""Previews: the clean images that a batch would give after some steps of the sampler."""

import time
from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor

from blip3o.flow.path import velocity_to_clean
from blip3o.serve.jobs import Preview, Row

Decode = Callable[[Tensor, Tensor], list[Image.Image]]
"""(normalized features [V, N, K], decoder noise [V, ...]) -> images."""


class Previewer:
    """Delivers previews of the rows of a batch whose requests want them.

    Args:
        rows: rows of the batch, without padding.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._began = time.monotonic()

    def start(self, noise: Tensor, decoder_noise: Tensor, sigmas: Tensor) -> None:
        """Stores the start of the sampler.

        Args:
            noise: features before the first step, [B, N, K].
            decoder_noise: start of the image decoder, [B, *noise_shape].
            sigmas: falling noise levels, [steps + 1].
        """
        self._before = noise
        self._decoder_noise = decoder_noise
        self._sigmas = sigmas.tolist()

    def __call__(self, step: int, noisy: Tensor, decode: Decode) -> None:
        """Delivers the previews that are due after a step.

        Args:
            step: number of finished steps.
            noisy: features after the step, [B, N, K]; padded rows come last.
            decode: converts clean features to images.
        """
        before, self._before = self._before, noisy
        due = [
            place
            for place, row in enumerate(self._rows)
            if row.request.preview_every
            and (step % row.request.preview_every == 0 or step == row.request.num_inference_steps)
            and not row.job.is_cancelled
        ]
        if not due:
            return
        interval = self._sigmas[step] - self._sigmas[step - 1]
        velocity = (noisy[due] - before[due]) / interval
        sigma = noisy.new_full((len(due),), self._sigmas[step])
        clean = velocity_to_clean(velocity, noisy[due], sigma)
        images = decode(clean.to(self._decoder_noise), self._decoder_noise[due])
        seconds = time.monotonic() - self._began
        for place, image in zip(due, images, strict=True):
            row, features = self._rows[place], noisy[place].float().cpu()
            row.job.deliver(Preview(row.index, step, image, features, seconds))
