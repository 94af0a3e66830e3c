"""The prepared NextDiT gives the same velocities as the plain one."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from blip3o.flow.sigmas import inference_sigmas
from blip3o.models.dit import nextdit_sampling
from blip3o.models.dit.nextdit import NextDiT, NextDiTConfig
from blip3o.models.dit.nextdit_sampling import LayerFunction, PreparedNextDiT, sample_layer

TINY = dataclasses.replace(NextDiTConfig.tiny(), hidden_size=32, num_heads=4)
SIGMAS = inference_sigmas(5, 2.0)[:-1]


def with_null(condition: Tensor) -> Tensor:
    """Returns the batch [null, condition], [2 B, ...]."""
    return torch.cat([torch.zeros_like(condition), condition])


def build(config: NextDiTConfig) -> NextDiT:
    """Returns a network with random weights, because fresh gates are zero."""
    torch.manual_seed(0)
    dit = config.build()
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return dit


def inputs(
    config: NextDiTConfig, num_images: int, grid: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns noise, two conditions and, if the config takes them, features of images to edit."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = grid or (config.grid, config.grid)
    noisy = torch.randn(2 * num_images, rows * columns, config.in_channels, generator=generator)
    condition = torch.randn(2, 5, config.condition_size, generator=generator)
    shape = (2, rows * columns, config.reference_channels)
    reference = torch.randn(shape, generator=generator) if config.reference_channels else None
    return noisy, condition, reference


def plain(
    dit: NextDiT,
    noisy: Tensor,
    sigma: Tensor,
    condition: Tensor,
    reference: Tensor | None,
    *,
    is_guided: bool,
    grid: tuple[int, int] | None = None,
    truncate_timestep: bool = False,
) -> Tensor:
    num_images = len(noisy) // len(condition)
    condition = condition.repeat_interleave(num_images, 0)
    reference = None if reference is None else reference.repeat_interleave(num_images, 0)
    if is_guided:
        noisy, condition = torch.cat([noisy, noisy]), with_null(condition)
        reference = None if reference is None else torch.cat([reference, reference])
    return dit.velocity(
        noisy,
        sigma.expand(len(noisy)),
        condition,
        reference=reference,
        grid=grid,
        truncate_timestep=truncate_timestep,
    )


@torch.no_grad()
def assert_equals_plain(
    dit: NextDiT,
    *,
    num_images: int = 1,
    is_guided: bool = True,
    grid: tuple[int, int] | None = None,
    truncate_timestep: bool = False,
    layer: LayerFunction | None = None,
) -> None:
    noisy, condition, reference = inputs(dit.config, num_images, grid)
    prepared = PreparedNextDiT(
        dit,
        condition,
        SIGMAS,
        num_images=num_images,
        is_guided=is_guided,
        reference=reference,
        grid=grid,
        truncate_timestep=truncate_timestep,
        layer=layer,
    )
    for step, sigma in enumerate(SIGMAS):
        before = noisy.clone()
        got = prepared.velocity(noisy, step)
        assert torch.equal(noisy, before)
        expected = plain(
            dit,
            noisy,
            sigma,
            condition,
            reference,
            is_guided=is_guided,
            grid=grid,
            truncate_timestep=truncate_timestep,
        )
        scale = float(expected.abs().max())
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("is_guided", [True, False])
@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "reference_channels": 3},
        {"reference_channels": 8, "grid": 4, "patch_size": 2},
    ],
)
def test_prepared_velocities_equal_plain_ones(
    change: dict[str, int], num_images: int, is_guided: bool
) -> None:
    dit = build(dataclasses.replace(TINY, **change))  # type: ignore[arg-type]
    assert_equals_plain(dit, num_images=num_images, is_guided=is_guided)


def test_any_grid_and_whole_timesteps() -> None:
    assert_equals_plain(build(TINY), num_images=2, grid=(3, 5), truncate_timestep=True)


def test_scales_of_many_levels_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nextdit_sampling, "_LEVELS_AT_ONCE", 2)
    assert_equals_plain(build(TINY))


def test_the_null_half_computes_no_cross_attention() -> None:
    dit = build(TINY)
    asked: list[tuple[int, ...]] = []
    for index in range(TINY.num_layers):
        query = dit.get_submodule(f"layers.{index}.attn2.to_q")
        query.register_forward_pre_hook(lambda _, x: asked.append(tuple(x[0].shape)))
    noisy, condition, _ = inputs(TINY, 1)
    with torch.no_grad():
        PreparedNextDiT(dit, condition, SIGMAS, is_guided=True).velocity(noisy, 0)
    assert asked == [(2, 4, TINY.hidden_size)] * TINY.num_layers


def test_keys_of_a_condition_are_computed_once_for_all_steps_and_images() -> None:
    dit = build(TINY)
    asked: list[tuple[int, ...]] = []
    key = dit.get_submodule("layers.0.attn2.to_k")
    key.register_forward_pre_hook(lambda _, x: asked.append(tuple(x[0].shape[:2])))
    noisy, condition, _ = inputs(TINY, 3)
    with torch.no_grad():
        prepared = PreparedNextDiT(dit, condition, SIGMAS, num_images=3, is_guided=True)
        for step in range(len(SIGMAS)):
            prepared.velocity(noisy, step)
    assert asked == [(2, 5), (1, 1)]  # two conditions of five tokens, and one empty token


@pytest.mark.parametrize("num_levels", [1, 2, 5])
def test_the_shape_of_every_product_of_scales_is_the_same_in_any_batch(num_levels: int) -> None:
    """CPU libraries round by the number of rows, so a shared product would change an image."""
    dit = build(TINY)
    names = [f"layers.{index}.norm1.linear" for index in range(TINY.num_layers)]
    seen: list[tuple[int, ...]] = []
    for name in (*names, "norm_out.linear_1"):
        dit.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs: seen.append(tuple(inputs[0].shape))
        )
    shapes = []
    for num_conditions in (1, 2, 7):
        generator = torch.Generator().manual_seed(1)
        condition = torch.randn(num_conditions, 5, TINY.condition_size, generator=generator)
        noisy = torch.randn(num_conditions, TINY.grid**2, TINY.in_channels, generator=generator)
        reference = noisy.new_zeros(num_conditions, TINY.grid**2, TINY.reference_channels)
        seen.clear()
        with torch.no_grad():
            prepared = PreparedNextDiT(
                dit,
                condition,
                SIGMAS[:num_levels],
                num_images=1,
                is_guided=True,
                reference=reference if TINY.reference_channels else None,
            )
            prepared.velocity(noisy, 0)
        assert seen
        shapes.append(set(seen))
    assert shapes[0] == shapes[1] == shapes[2]


def test_half_precision_stays_near_fp32() -> None:
    dit = build(TINY).to(torch.bfloat16)
    noisy, condition, _ = (None if x is None else x.bfloat16() for x in inputs(TINY, 2))
    assert noisy is not None
    assert condition is not None
    with torch.no_grad():
        got = PreparedNextDiT(dit, condition, SIGMAS, num_images=2, is_guided=True).velocity(
            noisy, 1
        )
        exact = PreparedNextDiT(
            dit.float(), condition.float(), SIGMAS, num_images=2, is_guided=True
        )
        expected = exact.velocity(noisy.float(), 1)
    assert got.dtype == torch.bfloat16
    assert float((got.float() - expected).norm() / expected.norm()) < 3e-2


def test_shapes_that_do_not_fit_are_named() -> None:
    dit = build(TINY)
    noisy, condition, _ = inputs(TINY, 1)
    with pytest.raises(ValueError, match="condition is 3 wide, the DiT takes 16"):
        PreparedNextDiT(dit, condition[..., :3], SIGMAS)
    with pytest.raises(ValueError, match="reference has 8 channels, the DiT takes 0"):
        PreparedNextDiT(dit, condition, SIGMAS, reference=noisy)
    with pytest.raises(ValueError, match=r"3 feature tokens do not fill the grid \(2, 2\)"):
        PreparedNextDiT(dit, condition, SIGMAS).velocity(noisy[:, :3], 0)


@pytest.mark.compile
def test_compiled_layers_give_the_same() -> None:
    dit = build(dataclasses.replace(TINY, num_kv_heads=2))
    layer = torch.compile(sample_layer)
    assert_equals_plain(dit, num_images=2, layer=layer)
    assert_equals_plain(dit, is_guided=False, layer=layer)
