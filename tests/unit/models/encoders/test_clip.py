"""The features of the CLIP encoder are the chosen states of transformers' model."""

import dataclasses

import pytest
import torch
from torch import Tensor

from blip3o.imaging.pixels import normalize_for_clip
from blip3o.models.encoders.clip import ClipEncoder, ClipEncoderConfig


def build(skip_last: int = 0) -> ClipEncoder:
    torch.manual_seed(0)
    tiny = dataclasses.replace(ClipEncoderConfig.tiny(), num_layers=3, pool=1, skip_last=skip_last)
    encoder = tiny.build().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def images(encoder: ClipEncoder) -> Tensor:
    side = encoder.config.image_px
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def states_after(encoder: ClipEncoder, num_layers: int, pixels: Tensor) -> Tensor:
    tower = encoder.tower
    states = tower.pre_layrnorm(tower.embeddings(normalize_for_clip(pixels)))
    for layer in tower.encoder.layers[:num_layers]:
        output = layer(states, None)
        states = output[0] if isinstance(output, tuple) else output
    return states[:, 1:]


@pytest.mark.parametrize("skip_last", [1, 2, 3])
def test_last_layers_and_the_norm_can_be_left_out(skip_last: int) -> None:
    encoder = build(skip_last=skip_last)
    pixels = images(encoder)
    with torch.no_grad():
        expected = states_after(encoder, 3 - skip_last, pixels)
        torch.testing.assert_close(encoder(pixels), expected, rtol=0, atol=1e-5)


def test_all_layers_end_in_the_norm_of_the_class_token() -> None:
    encoder = build()
    pixels = images(encoder)
    with torch.no_grad():
        expected = encoder.tower.post_layernorm(states_after(encoder, 3, pixels))
        torch.testing.assert_close(encoder(pixels), expected, rtol=0, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused() -> None:
    tiny = ClipEncoderConfig.tiny()
    with pytest.raises(ValueError, match="multiple of patch_px"):
        dataclasses.replace(tiny, image_px=20)
    with pytest.raises(ValueError, match="skip_last must be 0 to 1"):
        dataclasses.replace(tiny, skip_last=2)
