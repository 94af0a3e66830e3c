"""NextDiT against the Lumina-Next network of diffusers, at sizes without recordings."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.models.dit.nextdit import NextDiT, NextDiTConfig
from blip3o.models.dit.nextdit_sampling import PreparedNextDiT

TOLERANCE = 2e-5

TINY = NextDiTConfig.tiny()
SIZES = {
    "as many key heads": TINY,
    "fewer key heads": dataclasses.replace(TINY, num_heads=4, num_kv_heads=2),
    "one key head": dataclasses.replace(TINY, num_heads=4, num_kv_heads=1, num_layers=1),
    "patches": dataclasses.replace(TINY, grid=4, patch_size=2),
    "wider feed-forward": dataclasses.replace(TINY, ffn_dim_multiplier=1.5, multiple_of=8),
    "wider than the vector": dataclasses.replace(TINY, hidden_size=1040, num_layers=1),
}

each_size = pytest.mark.parametrize("config", SIZES.values(), ids=SIZES.keys())
each_epsilon = pytest.mark.parametrize("norm_eps", [1e-8, 1e-6, 1e-5, 1e-3, 0.1])


class Oracle(nn.Module):
    """The network of diffusers with a caption projection before it, and our weights in both.

    Args:
        dit: gives sizes and weights.
    """

    def __init__(self, dit: NextDiT) -> None:
        super().__init__()
        from diffusers.models.transformers.lumina_nextdit2d import LuminaNextDiT2DModel

        config = dit.config
        self.project = dit.caption_projection
        self.head_dim = config.hidden_size // config.num_heads
        self.network: Any = LuminaNextDiT2DModel(
            sample_size=config.grid,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_kv_heads=config.kv_heads,
            multiple_of=config.multiple_of,
            ffn_dim_multiplier=config.ffn_dim_multiplier,
            norm_eps=config.norm_eps,
            learn_sigma=False,
            cross_attention_dim=config.hidden_size,
        )
        own = {k: v for k, v in dit.state_dict().items() if not k.startswith("caption_projection.")}
        fit = self.network.load_state_dict(own, strict=False)
        assert fit.missing_keys == ["pad_token"]
        assert not fit.unexpected_keys

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

        context = self.project(condition)
        rope = get_2d_rotary_pos_embed_lumina(self.head_dim, 16, 16)
        mask = torch.ones(context.shape[:2])
        return self.network(noisy, timestep, context, mask, rope, {}, return_dict=False)[0]


def build(config: NextDiTConfig) -> NextDiT:
    """Returns a network with nonzero gates and with states so small that every epsilon matters."""
    torch.manual_seed(0)
    dit = config.build()
    for name, parameter in dit.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5)
        else:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    return dit.eval()


def inputs(config: NextDiTConfig) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows, columns = 2 * config.grid, config.grid
    noisy = 0.1 * torch.randn(2, config.in_channels, rows, columns, generator=generator)
    condition = 0.1 * torch.randn(2, 5, config.condition_size, generator=generator)
    return noisy, torch.tensor([999.0, 12.5]), condition


@each_epsilon
@each_size
@torch.no_grad()
def test_velocity_equals_the_one_of_diffusers(config: NextDiTConfig, norm_eps: float) -> None:
    dit = build(dataclasses.replace(config, norm_eps=norm_eps))
    given = inputs(config)
    torch.testing.assert_close(dit(*given), Oracle(dit)(*given), rtol=0, atol=TOLERANCE)


@each_epsilon
@torch.no_grad()
def test_the_fast_path_has_the_same_epsilons(norm_eps: float) -> None:
    config = dataclasses.replace(TINY, norm_eps=norm_eps)
    dit = build(config)
    noisy, timestep, condition = inputs(config)
    grid = (noisy.shape[2], noisy.shape[3])
    tokens, sigmas = noisy.flatten(2).transpose(1, 2), timestep[:1] / 1000
    prepared = PreparedNextDiT(dit, condition, sigmas, grid=grid)
    expected = Oracle(dit)(noisy, timestep[:1].expand(2), condition).flatten(2).transpose(1, 2)
    torch.testing.assert_close(prepared.velocity(tokens, 0), expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_the_epsilon_matters_at_these_sizes() -> None:
    """Without this, the tests above would prove nothing."""
    given = inputs(TINY)
    low, high = (build(dataclasses.replace(TINY, norm_eps=eps))(*given) for eps in (1e-5, 1e-3))
    assert float((low - high).abs().max()) > 100 * TOLERANCE
