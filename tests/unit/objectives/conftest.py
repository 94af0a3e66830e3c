"""A tiny model and hand-made batches for it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blip3o.core.config import evolve
from blip3o.core.types import IGNORE_LABEL, Batch, ImageRequest
from blip3o.models.decoders import DECODERS
from blip3o.models.decoders.vae import VaeDecoderConfig
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.encoders.vae import VaeEncoderConfig
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig

IMAGE_TOKEN = 5
MakeBatch = Callable[..., Batch]


@pytest.fixture
def make_model() -> Callable[[str], UnifiedModel]:
    """Returns tiny models by kind of image decoder, with random weights.

    Fresh gates are zero and would hide branches. Diffusion decoders get the encoder's image size.
    """

    def make(kind: str) -> UnifiedModel:
        torch.manual_seed(0)
        decoder = DECODERS.get(kind).tiny()
        if decoder.predicts_latents:
            side = 16 // decoder.autoencoder.downsampling
            decoder = dataclasses.replace(decoder, sample_size=side)
        config = dataclasses.replace(UnifiedModelConfig.tiny(), image_decoder=decoder)
        model = config.build().eval()
        for part in (model.get_submodule("generator.dit"), model.image_decoder):
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.2)
        return model

    return make


class Brightness:
    """A reward for tests: the mean of all pixels, in [0, 1]."""

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> list[float]:
        assert len(images) == len(requests)
        return [float(np.asarray(image).mean()) / 255 for image in images]


@pytest.fixture(scope="session")
def brightness() -> Brightness:
    return Brightness()


@pytest.fixture
def model(make_model: Callable[[str], UnifiedModel]) -> UnifiedModel:
    """The tiny model with a decoder that predicts clean images."""
    return make_model("pocket")


@pytest.fixture
def vae_model() -> UnifiedModel:
    """A tiny model that draws latents of a VAE and sees images with eyes of its own."""
    torch.manual_seed(0)
    return tiny_vae(UnifiedModelConfig.tiny()).build().eval()


def tiny_vae(base: UnifiedModelConfig) -> UnifiedModelConfig:
    changes = {
        "backbone.image_channels": None,
        "backbone.vision_tower": base.image_encoder,
        "image_encoder": VaeEncoderConfig.tiny(),
        "image_decoder": VaeDecoderConfig.tiny(),
        "normalizer": FeatureNormalizerConfig(num_components=4, power=0.0),
        "generator.patch_size": 2,
    }
    return evolve(base, changes)


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make_batch() -> MakeBatch:
    """Returns batches whose row i depends only on the i-th sample index."""

    def make(indices: list[int], task: str = "text_to_image", epoch: int = 0) -> Batch:
        rows = [_row(index, task) for index in indices]
        stacked: dict[str, Any] = {
            key: torch.stack([row[key] for row in rows])
            for key in rows[0]
            if key not in ("prompt_features", "prompt_pixels")
        }
        for key in ("prompt_features", "prompt_pixels"):
            if key in rows[0]:
                stacked[key] = torch.stack([row[key] for row in rows])
        if task == "edit":
            stacked["reference_rows"] = torch.arange(len(rows))
        if task == "rollout":
            stacked["requests"] = tuple(
                ImageRequest(prompt=f"{index}", fields={}) for index in indices
            )
        return Batch(
            task=task,
            indices=torch.tensor(indices),
            epochs=torch.full((len(indices),), epoch),
            **stacked,
        )

    return make


def _row(index: int, task: str) -> dict[str, Tensor]:
    length = 8
    ids = torch.randint(10, 300, (length,), generator=torch.Generator().manual_seed(index))
    mask = torch.ones(length, dtype=torch.bool)
    padding = index % 3
    row: dict[str, Tensor] = {}
    if task in ("edit", "image_to_text"):
        ids[3:7] = IMAGE_TOKEN
        row["prompt_features"] = _random((4, 16), 1000 + index)
    if task in ("text_to_image", "edit", "reconstruct", "rollout"):
        mask[:padding] = False
    if task in ("text_to_image", "edit", "reconstruct"):
        row["target_features"] = _random((4, 16), 2000 + index)
        row["target_pixels"] = _random((3, 16, 16), 3000 + index).clamp(-1, 1)
    elif task == "contrastive":
        row["target_pixels"] = _random((3, 16, 16), 3000 + index).clamp(-1, 1)
        place = torch.tensor([0.25 + 0.5 * (index % 2), 0.25, 0.5, index % 2, index % 3])
        row["regions"] = torch.stack([place, torch.full((5,), -1.0)])
    elif task != "rollout":
        labels = ids.clone()
        labels[: 7 if task == "image_to_text" else 4] = IGNORE_LABEL
        labels[length - padding :] = IGNORE_LABEL
        mask[length - padding :] = False
        row["labels"] = labels
    return {"input_ids": ids, "attention_mask": mask, **row}
