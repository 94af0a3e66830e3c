"""The U-Net around image blocks: shapes, fresh weights, skips and surroundings of a patch."""

import math

import pytest
import torch
from torch import Tensor, nn

from blip3o.models.generators.patch_unet import PatchUNet, PatchUNetConfig, prime_factors

CONFIG = PatchUNetConfig(hidden_size=16, num_blocks=1, num_heads=2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(patch_size: int) -> PatchUNet:
    torch.manual_seed(0)
    unet = PatchUNet(CONFIG, channels=5, patch_size=patch_size, vector_size=8)
    for parameter in unet.parameters():  # fresh blocks are the identity and would hide the vector
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return unet


def test_factors() -> None:
    assert [prime_factors(n) for n in (1, 2, 3, 8, 12)] == [(), (2,), (3,), (2, 2, 2), (2, 2, 3)]


@pytest.mark.parametrize(
    ("patch_size", "grid"), [(1, (2, 2)), (2, (4, 4)), (3, (6, 3)), (4, (8, 8))]
)
@torch.no_grad()
def test_patches_go_in_and_features_come_out(patch_size: int, grid: tuple[int, int]) -> None:
    unet, num_tokens = network(patch_size), math.prod(grid)
    noisy = random(2, num_tokens, 5)
    patches, skips = unet.enter(noisy, random(2, 8), grid)
    assert patches.shape == (2, num_tokens // patch_size**2, 16)
    assert unet.leave(patches, skips).shape == noisy.shape


def test_a_fresh_network_returns_zeros() -> None:
    unet = PatchUNet(CONFIG, channels=5, patch_size=2, vector_size=8)
    patches, skips = unet.enter(random(2, 16, 5), random(2, 8), (4, 4))
    assert not unet.leave(patches, skips).any()
    assert bool(patches.any())


@torch.no_grad()
def test_patches_are_row_major_and_know_their_surroundings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet, noisy, vector = network(2), random(1, 256, 5), random(1, 8)
    # Without attention, a change of the last feature reaches the patches around it only.
    unet.mix = nn.ModuleList([nn.Identity(), nn.Identity()])
    # The statistics of norms are those of the whole image.
    monkeypatch.setattr(nn.GroupNorm, "forward", lambda norm, hidden: hidden)
    changed = noisy.clone()
    changed[0, -1] += 1.0
    before, skips = unet.enter(noisy, vector, (16, 16))
    after, _ = unet.enter(changed, vector, (16, 16))
    moved = (before != after).any(-1)[0].unflatten(0, (8, 8))
    assert bool(moved[-1, -1])
    assert bool(moved[-1, -2])
    assert not bool(moved[0].any())
    assert not bool(moved[:, 0].any())
    # The same holds on the way back.
    patches = before.clone()
    patches[0, -1] += 1.0
    moved = (
        (unet.leave(before, skips) != unet.leave(patches, skips)).any(-1)[0].unflatten(0, (16, 16))
    )
    assert bool(moved[-2:, -2:].all())
    assert not bool(moved[0].any())
    assert not bool(moved[:, 0].any())


@torch.no_grad()
def test_the_way_back_reads_the_input_and_the_noise_level() -> None:
    unet, grid = network(2), (4, 4)
    patches, skips = unet.enter(random(1, 16, 5), random(1, 8), grid)
    plain = unet.leave(patches, skips)
    for other in range(len(skips)):
        mixed = [one if k != other else one + 0.5 for k, one in enumerate(skips)]
        assert not torch.allclose(unet.leave(patches, tuple(mixed)), plain, atol=1e-4)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads 3 does not divide hidden_size 16"):
        PatchUNetConfig(hidden_size=16, num_heads=3)
    with pytest.raises(ValueError, match="hidden_size must be a multiple of 16, got 41"):
        PatchUNetConfig(hidden_size=41, num_heads=1)
