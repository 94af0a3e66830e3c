"""NextDiT: properties that parity does not test: fast paths, options and errors."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.models.dit.nextdit import NextDiT, NextDiTConfig

TINY = NextDiTConfig.tiny()


def build(config: NextDiTConfig = TINY) -> NextDiT:
    """Returns a network with random weights, because fresh gates are zero."""
    torch.manual_seed(0)
    dit = config.build()
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return dit


def inputs(config: NextDiTConfig = TINY, rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(rows, config.grid**2, config.in_channels, generator=generator)
    condition = torch.randn(rows, 5, config.condition_size, generator=generator)
    return noisy, torch.linspace(0.1, 1.0, rows), condition


def test_fresh_gates_close_the_cross_attention() -> None:
    dit = TINY.build()
    gates = [value for key, value in dit.state_dict().items() if key.endswith(".gate")]
    assert len(gates) == TINY.num_layers
    assert not any(bool(gate.any()) for gate in gates)


def test_open_gates_change_nothing_else() -> None:
    networks = []
    for gates in ("closed", "open"):
        torch.manual_seed(0)
        networks.append(dataclasses.replace(TINY, fresh_gates=gates).build())
    closed, opened = (network.state_dict() for network in networks)
    for name, tensor in opened.items():
        expected = closed[name].clone()
        if name.endswith(".gate"):
            expected.fill_(1.0)
        elif name.endswith(".norm1.linear.bias"):
            expected.view(4, -1)[[1, 3]] = 1.0
        assert torch.equal(tensor, expected), name
    networks[1].load_state_dict(closed)
    assert torch.equal(*(network.velocity(*inputs()) for network in networks))


def test_open_gates_pass_every_branch_from_the_start() -> None:
    noisy, sigma, condition = inputs()
    for gates, is_open in (("closed", False), ("open", True)):
        torch.manual_seed(0)
        dit = dataclasses.replace(TINY, fresh_gates=gates).build()
        context, other = (dit.prepare_context(one) for one in (condition, condition.flip(0)))
        mixed = dataclasses.replace(context, layers=other.layers)  # the pooled part stays
        before, after = (dit.velocity(noisy, sigma, condition, one) for one in (context, mixed))
        assert float((after - before).detach().square().mean() > 1e-4) == is_open
        before.square().mean().backward()
        idle = {
            name
            for name, value in dit.named_parameters()
            if value.grad is None or not value.grad.any()
        }
        cross = {
            name
            for name, _ in dit.named_parameters()
            if ".norm1_context." in name or (".attn2." in name and ".to_out." not in name)
        }
        assert idle == (set() if is_open else cross)


def test_velocity_is_the_released_form_at_1000_sigma() -> None:
    dit, (noisy, sigma, condition) = build(), inputs()
    image = noisy.transpose(1, 2).unflatten(2, (TINY.grid, TINY.grid))
    expected = dit(image, 1000 * sigma, condition).flatten(2).transpose(1, 2)
    torch.testing.assert_close(dit.velocity(noisy, sigma, condition), expected)


@pytest.mark.parametrize("num_kv_heads", [None, 1])
def test_prepared_context_changes_nothing(num_kv_heads: int | None) -> None:
    config = dataclasses.replace(TINY, num_kv_heads=num_kv_heads)
    dit, (noisy, sigma, condition) = build(config), inputs(config)
    with torch.no_grad():
        context = dit.prepare_context(condition)
        fast = dit.velocity(noisy, sigma, torch.zeros_like(condition), context)
        assert torch.equal(fast, dit.velocity(noisy, sigma, condition))


def test_layers_may_have_conditions_of_their_own() -> None:
    dit, (noisy, sigma, condition) = build(), inputs()
    same = condition.unsqueeze(1).expand(-1, TINY.num_layers, -1, -1)
    expected = dit.velocity(noisy, sigma, condition)
    torch.testing.assert_close(dit.velocity(noisy, sigma, same), expected)
    turned = torch.stack([condition, condition.flip(0)], dim=1)
    swapped = dit.velocity(noisy, sigma, turned.flip(1))  # the pooled condition stays the same
    assert not torch.allclose(dit.velocity(noisy, sigma, turned), swapped, atol=1e-3)


def test_a_mask_hides_tokens_of_the_condition() -> None:
    dit, (noisy, sigma, condition) = build(), inputs()
    mask = torch.tensor([False, True, True, False, True]).expand(3, -1)
    expected = dit.velocity(noisy, sigma, condition[:, [1, 2, 4]])
    hidden = dit.velocity(noisy, sigma, condition, dit.prepare_context(condition, mask))
    torch.testing.assert_close(hidden, expected)


def test_truncated_timestep_is_the_whole_number_below() -> None:
    dit, (noisy, _, condition) = build(), inputs()
    exact, low = torch.full((3,), 0.9666667), torch.full((3,), 0.966)
    truncated = dit.velocity(noisy, exact, condition, truncate_timestep=True)
    torch.testing.assert_close(truncated, dit.velocity(noisy, low, condition))
    assert not torch.allclose(truncated, dit.velocity(noisy, exact, condition))


def test_reference_starts_without_effect_and_learns() -> None:
    config = dataclasses.replace(TINY, reference_channels=3)
    assert not any("reference" in key for key in TINY.build().state_dict())
    dit, (noisy, sigma, condition) = config.build(), inputs(config)
    reference = torch.randn(3, config.grid**2, 3)
    with_reference = dit.velocity(noisy, sigma, condition, reference=reference)
    assert torch.equal(with_reference, dit.velocity(noisy, sigma, condition))
    with_reference.square().sum().backward()
    assert dit.reference_embedder is not None
    gradient = dit.reference_embedder.weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_reference_is_added_to_the_embedded_tokens() -> None:
    config = dataclasses.replace(TINY, reference_channels=TINY.in_channels)
    dit, (noisy, sigma, condition) = build(config), inputs(config)
    assert dit.reference_embedder is not None
    dit.reference_embedder.weight.data = dit.patch_embedder.proj.weight.data
    dit.reference_embedder.bias.data.zero_()
    half = dit.velocity(noisy / 2, sigma, condition, reference=noisy / 2)
    torch.testing.assert_close(half, dit.velocity(noisy, sigma, condition))


def test_grid_orders_the_tokens() -> None:
    dit, (noisy, sigma, condition) = build(), inputs()
    square = dit.velocity(noisy, sigma, condition)
    assert torch.equal(dit.velocity(noisy, sigma, condition, grid=(2, 2)), square)
    assert not torch.allclose(dit.velocity(noisy, sigma, condition, grid=(1, 4)), square)


def test_patches_are_gathered_and_spread_by_position() -> None:
    config = dataclasses.replace(TINY, grid=4, patch_size=2)
    dit, (noisy, sigma, condition) = build(config), inputs(config)
    # In: (channel, row, column) inside a patch; out: (row, column, channel).
    taken: dict[str, Tensor] = {}
    dit.patch_embedder.proj.register_forward_hook(lambda m, i, o: taken.update(tokens=i[0]))
    dit.norm_out.register_forward_hook(lambda m, i, o: taken.update(out=o))
    velocity = dit.velocity(noisy, sigma, condition)
    assert velocity.shape == noisy.shape
    token = 3 * 4 + 0  # row 3, column 0: in patch 2 at (1, 0)
    assert torch.equal(taken["tokens"][:, 2].unflatten(-1, (-1, 2, 2))[..., 1, 0], noisy[:, token])
    assert torch.equal(taken["out"][:, 2].unflatten(-1, (2, 2, -1))[:, 1, 0], velocity[:, token])


def test_autocast_stays_near_fp32() -> None:
    dit, (noisy, sigma, condition) = build(), inputs()
    expected = dit.velocity(noisy, sigma, condition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = dit.velocity(noisy, sigma, condition)
        actual.square().sum().backward()
    assert actual.dtype == torch.float32
    error = (actual - expected).square().mean() / expected.square().mean()
    assert float(error.detach()) < 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noisy": torch.zeros(3, 4, 9)}, "features have 9 channels, the DiT 8"),
        ({"noisy": torch.zeros(3, 5, 8)}, "5 feature tokens do not form a square grid"),
        ({"condition": torch.zeros(3, 5, 7)}, "condition is 7 wide, the DiT takes 16"),
        ({"condition": torch.zeros(3, 9, 5, 16)}, "condition is for 9 layers, the DiT has 2"),
        ({"reference": torch.zeros(3, 4, 8)}, "reference has 8 channels, the DiT takes 0"),
        ({"grid": (3, 2)}, "4 feature tokens do not fill a grid of 3 x 2"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    noisy, sigma, condition = inputs()
    arguments: dict[str, object] = {"noisy": noisy, "sigma": sigma, "condition": condition}
    with pytest.raises(ValueError, match=message):
        build().velocity(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "multiple of 4"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"patch_size": 3}, "patch_size"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.compile
def test_is_one_graph_for_the_compiler() -> None:
    dit, arguments = build(dataclasses.replace(TINY, num_layers=1)), inputs()
    expected = dit.velocity(*arguments)
    compiled = torch.compile(dit.velocity, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), expected)
    with torch.no_grad():
        context = dit.prepare_context(arguments[2])
        torch.testing.assert_close(compiled(*arguments, context), expected.detach())
