"""The feature cache of a run: its frozen image encoder's features of all images in its data."""

import hashlib
import json

import torch
from torch import Tensor, nn

from blip3o.core.config import to_dict
from blip3o.core.device import resolve_device
from blip3o.core.distributed import rank, world_size
from blip3o.core.errors import UsageError
from blip3o.core.shard import WHOLE, Shard
from blip3o.data.cache import FeatureCache, build_cache
from blip3o.data.tasks import IMAGES
from blip3o.imaging.load import READING
from blip3o.train.config import RunConfig

_PREPROCESSING = "rgb, stretched, bicubic, [-1, 1]"
"""Part of the fingerprint; change it whenever `imaging.pixels` prepares images differently.
`imaging.load.READING` does the same for the way in which files are read."""


def feature_cache(config: RunConfig, encoder: nn.Module, shard: Shard = WHOLE) -> FeatureCache:
    """Returns the cache of all images that a run uses; all processes compute missing features.

    The features of a shard are bound to its data. If the data changed, the old features are kept
    and new ones are computed.

    Args:
        config: the run; `data.feature_cache` names the folder.
        encoder: its frozen image encoder; it is moved to the run's device.
        shard: the part of each source's shards that this run does.

    Raises:
        UsageError: if the run trains the encoder, a source is missing, or features cannot be
            stored.
    """
    if any(part.startswith("image_encoder") for part in config.train.trainable):
        raise UsageError(
            "data.feature_cache needs a frozen image encoder, and this run trains it; "
            "set data.feature_cache=null"
        )
    cache = FeatureCache(str(config.data.feature_cache), encoder_fingerprint(config, encoder))
    part = Shard((shard.number - 1) * world_size() + rank() + 1, shard.count * world_size())
    device = resolve_device(config.train.device)
    encoder = encoder.to(device).eval()

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        return encoder(pixels.to(device))

    for entry in config.data.mixture:
        source = entry.source.build()
        for role in IMAGES[entry.task]:
            build_cache(
                cache,
                source,
                role,
                encode,
                image_px=config.model.image_encoder.image_px,
                shard=part,
            )
    return cache


def encoder_fingerprint(config: RunConfig, encoder: nn.Module) -> str:
    """Returns a hash of a run's image encoder, its config and weights, and of the preprocessing."""
    digest = hashlib.sha256()
    encoder_config = config.model.image_encoder
    facts = [to_dict(encoder_config), encoder_config.image_px, _PREPROCESSING, READING]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:32]
