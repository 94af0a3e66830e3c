"""Draws the images of several requests in one batch, with the same bits as for a single request.

The shapes of plans depend on the prompt and its images, so plans are computed request by request.
Sampling and decoding run in batches of a few fixed sizes. If sampling reads the tokens of prompts,
plans are padded to a few lengths, and only plans of one length share a batch.
"""

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from blip3o.core.log import say
from blip3o.core.rng import image_generator
from blip3o.flow.solver import StepCallback
from blip3o.generate.draw import noise_levels
from blip3o.generate.exact import equal_batch_sizes, fingerprint, fingerprints
from blip3o.generate.outputs import (
    DecodingSettings,
    decoding_settings,
    empty_condition,
    finish,
)
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.requests import model_noise, square_pixels
from blip3o.models.generators.plan import Plan, join_plans
from blip3o.models.prompts import Prompts
from blip3o.serve.jobs import ImageRequest, Row
from blip3o.serve.previews import Previewer

_ONE_BY_ONE = (
    "blip3o: on this machine the last bits of an image depend on its place in a batch, so "
    "images are made one by one; --unpadded-batches makes them together"
)


_LEAST_TOKENS = 64
"""Shortest length to which plans are padded; the next ones are twice as long each."""


class ImageMaker:
    """Generates, edits and reconstructs the images of batches.

    Args:
        pipe: the pipeline.
        max_batch: rows of the largest batch.
        is_padded: pad batches to sizes at which the bits of a row do not depend on other rows.
        preview_steps: steps of the image decoder for previews, at most the model's own number.
    """

    def __init__(
        self,
        pipe: Blip3oPipeline,
        max_batch: int,
        *,
        is_padded: bool = True,
        preview_steps: int = 4,
    ) -> None:
        self._pipe = pipe
        self._model = pipe.model
        self._decoding = decoding_settings(pipe.model.config, None, None)
        own = self._decoding.num_steps
        self._quick = decoding_settings(pipe.model.config, min(own, preview_steps), None)
        self._empty = empty_condition(pipe.model, pipe.tokenizer)
        self.sampling_sizes = self.decoding_sizes = list(range(1, max_batch + 1))
        if is_padded:
            self._probe_plans = [self._probe_plan(number) for number in range(max_batch)]
            self.sampling_sizes = equal_batch_sizes(self._sampling_probe, max_batch)
            self.decoding_sizes = equal_batch_sizes(self._decoding_probe, max_batch)
        if min(self.sampling_sizes[-1], self.decoding_sizes[-1]) < max_batch:
            say(_ONE_BY_ONE)

    @torch.no_grad()
    def make(self, rows: Sequence[Row], on_step: StepCallback | None = None) -> list[Image.Image]:
        """Returns an image for each row.

        Args:
            rows: rows of requests with the same `batch_key`.
            on_step: called after each step of the sampler.
        """
        requests = {id(row.request): row.request for row in rows}
        plans: dict[int, Plan] = {}
        if rows[0].request.kind != "reconstruct":
            plans = {key: self._plan(request) for key, request in requests.items()}
        places_of: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            length = plans[id(row.request)].num_tokens if plans else 0
            places_of.setdefault(length, []).append(place)
        most = self.sampling_sizes[-1]
        images: dict[int, Image.Image] = {}
        for places in places_of.values():
            for start in range(0, len(places), most):
                part = places[start : start + most]
                made = self._make_batch([rows[place] for place in part], plans, on_step)
                images.update(zip(part, made, strict=True))
        return [images[place] for place in range(len(rows))]

    def _make_batch(
        self, rows: Sequence[Row], plans: dict[int, Plan], on_step: StepCallback | None
    ) -> list[Image.Image]:
        watch = Previewer(rows)
        requests = {id(row.request): row.request for row in rows}
        generators = [_generator(row) for row in rows]
        feature_noise, decoder_noise = model_noise(self._model, len(rows), generators)
        if rows[0].request.kind == "reconstruct":
            known = {key: self._encode(request) for key, request in requests.items()}
            features = torch.cat([known[id(row.request)] for row in rows])
        else:

            def after_step(step: int, features: Tensor) -> Tensor | None:
                watch(step, features, self._preview)
                return None if on_step is None else on_step(step, features)

            sampling = dataclasses.replace(
                self._model.config.sampling, num_inference_steps=rows[0].request.num_inference_steps
            )
            watch.start(feature_noise, decoder_noise, noise_levels(sampling))
            features = self._sample(rows, plans, feature_noise, after_step)
        return self._decode(features, decoder_noise, self._decoding)

    def _preview(self, features: Tensor, decoder_noise: Tensor) -> list[Image.Image]:
        return self._decode(features, decoder_noise, self._quick)

    def _decode(
        self, features: Tensor, decoder_noise: Tensor, settings: DecodingSettings
    ) -> list[Image.Image]:
        images: list[Image.Image] = []
        most = self.decoding_sizes[-1]
        for part, noise in zip(features.split(most), decoder_noise.split(most), strict=True):
            rows = _padded(part, self.decoding_sizes)
            noise_rows = _padded(noise, self.decoding_sizes)
            output = finish(self._model, rows, noise_rows, settings, "pil", self._empty)
            images += output.images[: len(part)]
        return images

    def _sample(
        self,
        rows: Sequence[Row],
        plans: dict[int, Plan],
        noise: Tensor,
        on_step: StepCallback | None,
    ) -> Tensor:
        plan = join_plans([plans[id(row.request)] for row in rows])
        first, sizes = rows[0].request, self.sampling_sizes
        scales = torch.tensor([row.request.guidance_scale for row in rows], device=noise.device)
        features = self._pipe.draw(
            plan.select(_padded(torch.arange(len(rows)), sizes)),
            _padded(noise, sizes),
            1.0 if first.guidance_scale == 1.0 else _padded(scales, sizes),
            num_inference_steps=first.num_inference_steps,
            callback=on_step,
        )
        return features[: len(rows)]

    def _plan(self, request: ImageRequest) -> Plan:
        """Returns the plan of one request; an edit reads all images and changes the first."""
        pixels = square_pixels(self._model, request.images) if request.images else None
        return _lengthened(self._pipe.plan([request.prompt], pixels))

    def _encode(self, request: ImageRequest) -> Tensor:
        return self._model.normalizer(self._pipe.encode(list(request.images[:1])))

    @torch.no_grad()
    def _probe_plan(self, number: int) -> Plan:
        """Returns the plan of a numbered prompt, which edits noise if the generator can edit."""
        config = self._model.config
        # Prompts of several lengths, as those of requests.
        row = self._pipe.tokenizer.encode(f"image {number} " * (number % 3 + 1))
        ids = torch.tensor([row], device=self._pipe.device)
        generator = image_generator(0, 0, number)
        reference, _ = model_noise(self._model, 1, generator)
        prompts = Prompts(
            input_ids=ids,
            attention_mask=torch.ones_like(ids).bool(),
            reference=reference if config.generator.takes_reference else None,
        )
        return _lengthened(self._model.plan(prompts))

    @torch.no_grad()
    def _sampling_probe(self, samples: Sequence[int]) -> Tensor:
        """Returns fingerprints [B, ...] of numbered samples: a step with and without guidance."""
        generators = [image_generator(0, 0, number) for number in samples]
        noise, _ = model_noise(self._model, len(samples), generators)
        plan = join_plans([self._probe_plans[number] for number in samples])
        # The whole model, because some generators draw with the backbone's layers.
        with fingerprints(self._model, len(samples)) as seen:
            for scale in (torch.full((len(samples),), 2.0, device=noise.device), 1.0):
                features = self._pipe.draw(plan, noise, scale, num_inference_steps=1)
                seen.append(fingerprint(features, len(samples)))
        return torch.cat(seen, dim=1)

    @torch.no_grad()
    def _decoding_probe(self, samples: Sequence[int]) -> Tensor:
        """Returns fingerprints [B, ...] of numbered samples in one step of the image decoder."""
        generators = [image_generator(0, 0, number) for number in samples]
        noise, decoder_noise = model_noise(self._model, len(samples), generators)
        one = decoding_settings(self._model.config, 1, None)
        with fingerprints(self._model.image_decoder, len(samples)) as seen:
            output = finish(self._model, noise, decoder_noise, one, "pt", self._empty)
            seen.append(fingerprint(output.images, len(samples)).to(noise.device))
        return torch.cat(seen, dim=1)


def _generator(row: Row) -> torch.Generator:
    request = row.request
    return image_generator(request.seed, request.prompt_number, request.image_number + row.index)


def _lengthened(plan: Plan) -> Plan:
    """Returns the plan of a prompt at a length that does not depend on other prompts."""
    if plan.num_tokens == 0:
        return plan
    return plan.padded(1 << (max(plan.num_tokens, _LEAST_TOKENS) - 1).bit_length())


def _padded(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns rows, padded with copies of the first row to the next larger of the sizes."""
    size = next(size for size in sizes if size >= len(rows))
    return torch.cat([rows, rows[:1].expand(size - len(rows), *rows.shape[1:])])
