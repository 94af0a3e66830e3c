"""The EVA-CLIP encoder: published grid, pooling and refused sizes."""

import dataclasses

import pytest
import torch

from blip3o.imaging.pixels import normalize_for_clip
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.encoders.grid import pool_tokens


def test_published_grid_is_8_by_8_tokens_of_1792_channels() -> None:
    config = EvaClipEncoderConfig.published()
    assert (config.grid, config.num_tokens, config.num_channels) == (8, 64, 1792)


def test_features_are_the_pooled_tokens_of_the_tower() -> None:
    torch.manual_seed(0)
    encoder = EvaClipEncoderConfig.tiny().build().eval()
    config = encoder.config
    pixels = torch.rand(2, 3, config.image_px, config.image_px) * 2 - 1
    with torch.no_grad():
        tokens = encoder.tower(normalize_for_clip(pixels))
        assert tokens.shape[1] == config.num_tokens * config.pool**2
        assert torch.equal(encoder(pixels), pool_tokens(tokens, config.pool))


def test_sizes_that_do_not_fit_are_refused() -> None:
    tiny = EvaClipEncoderConfig.tiny()
    with pytest.raises(ValueError, match="multiple of patch_px"):
        dataclasses.replace(tiny, image_px=20)
    with pytest.raises(ValueError, match="num_heads 3"):
        dataclasses.replace(tiny, num_heads=3)
