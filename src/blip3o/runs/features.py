"""The feature cache of a run: what its frozen image encoder says of everything it looks at."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from blip3o.core.config import to_dict
from blip3o.core.device import resolve_device
from blip3o.core.errors import UsageError
from blip3o.data.cache import FeatureCache, build_cache
from blip3o.data.tasks import IMAGES
from blip3o.imaging.load import READING
from blip3o.train.config import RunConfig

_PREPROCESSING = "rgb, stretched, bicubic, [-1, 1]"
"""Change this with `imaging.pixels`: features of images prepared otherwise are other features.
How files are read has a number of its own, `imaging.load.READING`."""


def feature_cache(
    config: RunConfig, encoder: nn.Module, rank: int = 0, world_size: int = 1
) -> FeatureCache:
    """Returns the cache of everything a run looks at, computed now where it is missing.

    Features belong to their data: those of other data under the same name stay where they are.

    Args:
        config: the run; `data.feature_cache` names the folder.
        encoder: its image encoder, frozen; moved to the run's device.
        rank: which process this is.
        world_size: how many share the work.

    Raises:
        UsageError: if the run trains the encoder, a source is missing, or an image's features
            cannot be kept.
    """
    if any(part.startswith("image_encoder") for part in config.train.trainable):
        raise UsageError("data.feature_cache needs a frozen image encoder; set it to null")
    fingerprint = encoder_fingerprint(config, encoder)
    folder = Path(str(config.data.feature_cache))
    cache = FeatureCache(folder, fingerprint)
    device = resolve_device(config.train.device)
    encoder = encoder.to(device).eval()

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        return encoder(pixels.to(device))

    for entry in config.data.mixture:
        source = entry.source.build()
        for role in IMAGES[entry.task]:
            if not cache.is_complete(source.name, role, source.fingerprint()):
                build_cache(
                    source,
                    role,
                    encode,
                    folder,
                    fingerprint,
                    image_px=config.model.image_encoder.image_px,
                    rank=rank,
                    world_size=world_size,
                )
    return cache


def encoder_fingerprint(config: RunConfig, encoder: nn.Module) -> str:
    """Returns a text that changes with the encoder, any of its weights, or the preprocessing.

    Args:
        config: the run.
        encoder: its image encoder.
    """
    digest = hashlib.sha256()
    encoder_config = config.model.image_encoder
    said = [to_dict(encoder_config), encoder_config.image_px, _PREPROCESSING, READING]
    digest.update(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:32]
