"""Contract of every backbone, image encoder and image decoder in the tables, at `tiny()` size."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from blip3o.core.config import from_dict, to_dict
from blip3o.models.backbones import BACKBONES
from blip3o.models.decoders import DECODERS
from blip3o.models.encoders import ENCODERS

TABLES = {"backbone": BACKBONES, "encoder": ENCODERS, "decoder": DECODERS}
NAMES = [(part, name) for part, table in TABLES.items() for name in table.names()]
ROWS = 4
IMAGE_PX = 16

each_component = pytest.mark.parametrize(("part", "name"), NAMES)


def build(part: str, name: str) -> Any:
    """Returns a network with random weights, as new gates and last layers may be zero."""
    torch.manual_seed(0)
    network = TABLES[part].get(name).tiny().build().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def inputs(part: str, config: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Returns the arguments of one forward pass with four rows."""
    g = torch.Generator().manual_seed(1)
    if part == "backbone":
        num_tokens = 4
        ids = torch.randint(10, config.vocab_size, (ROWS, 9), generator=g)
        ids[:, 2 : 2 + num_tokens] = config.image_token_id
        if config.image_channels is None:  # the vision tower takes pixels
            assert config.num_image_tokens(IMAGE_PX) == num_tokens
            images = torch.rand(ROWS, 3, IMAGE_PX, IMAGE_PX, generator=g) * 2 - 1
        else:
            images = torch.randn(ROWS, num_tokens, config.image_channels, generator=g)
        return [ids, images.to(dtype)]
    if part == "encoder":
        side = config.image_px
        return [(torch.rand(ROWS, 3, side, side, generator=g) * 2 - 1).to(dtype)]
    features = torch.randn(ROWS, config.grid**2, config.feature_channels, generator=g)
    noise = torch.randn(ROWS, *config.noise_shape, generator=g)
    return [features.to(dtype), noise.to(dtype)]


def embed(network: Any, ids: Tensor, images: Tensor) -> Tensor:
    has_tower = network.config.image_channels is None
    return network.embed(ids, network.vision_inputs(images) if has_tower else images)


def run_backbone(network: Any, ids: Tensor, images: Tensor) -> Tensor:
    embeds = embed(network, ids, images)
    return network.logits(network(embeds, torch.ones_like(ids, dtype=torch.bool)))


RUN: dict[str, Callable[..., Tensor]] = {
    "backbone": run_backbone,
    "encoder": lambda network, pixels: network(pixels),
    "decoder": lambda network, features, noise: network.decode(features, noise, 2),
}


@each_component
def test_config_round_trips(part: str, name: str) -> None:
    config = TABLES[part].get(name).tiny()
    assert config.kind == name
    assert from_dict(type(config), to_dict(config)) == config


@each_component
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_type_follow_the_config(part: str, name: str, dtype: torch.dtype) -> None:
    network = build(part, name).to(dtype)
    config = network.config
    with torch.no_grad():
        output = RUN[part](network, *inputs(part, config, dtype))
    expected = {
        "backbone": lambda: (ROWS, 9, config.vocab_size),
        "encoder": lambda: (ROWS, config.num_tokens, config.num_channels),
        "decoder": lambda: (ROWS, 3, config.image_px, config.image_px),
    }
    assert output.shape == expected[part]()
    assert output.dtype == dtype
    assert bool(output.isfinite().all())


@each_component
def test_builds_on_the_meta_device_with_the_same_shapes(part: str, name: str) -> None:
    with torch.device("meta"):
        network = TABLES[part].get(name).tiny().build()
    assert all(parameter.is_meta for parameter in network.parameters())
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    real = build(part, name).state_dict()
    assert shapes == {key: tensor.shape for key, tensor in real.items()}


@each_component
def test_gradient_reaches_every_parameter(part: str, name: str) -> None:
    network = build(part, name)
    RUN[part](network, *inputs(part, network.config)).square().sum().backward()
    for key, parameter in network.named_parameters():
        if not parameter.requires_grad:  # the VAE of a diffusion decoder is frozen
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        # Softmax is invariant to a bias that all keys share.
        if not key.endswith(("k_proj.bias", "to_k.bias")):
            assert float(parameter.grad.abs().sum()) > 0, key


@each_component
def test_saved_weights_give_bit_equal_outputs(part: str, name: str) -> None:
    network = build(part, name)
    again = TABLES[part].get(name).tiny().build().eval()
    again.load_state_dict(load(save(network.state_dict())), strict=True)
    arguments = inputs(part, network.config)
    with torch.no_grad():
        assert torch.equal(RUN[part](again, *arguments), RUN[part](network, *arguments))


@each_component
def test_a_row_does_not_depend_on_its_batch(part: str, name: str) -> None:
    network = build(part, name)
    arguments = inputs(part, network.config)
    with torch.no_grad():
        batch = RUN[part](network, *arguments)
        for row in range(ROWS):
            alone = RUN[part](network, *(one[row : row + 1] for one in arguments))
            scale = float(batch.abs().max())
            torch.testing.assert_close(alone, batch[row : row + 1], rtol=0, atol=1e-5 * scale)


@each_component
def test_is_deterministic_and_can_be_copied(part: str, name: str) -> None:
    network = build(part, name)
    arguments = inputs(part, network.config)
    with torch.no_grad():
        first = RUN[part](network, *arguments)
        assert torch.equal(RUN[part](network, *arguments), first)
        assert torch.equal(RUN[part](copy.deepcopy(network), *arguments), first)


@pytest.mark.parametrize("name", BACKBONES.names())
def test_backbone_requires_one_feature_token_per_placeholder(name: str) -> None:
    network = build("backbone", name)
    ids, features = inputs("backbone", network.config)
    with pytest.raises(ValueError, match="16 image placeholders, the images give 12"):
        embed(network, ids, features[:3])


@pytest.mark.parametrize("name", BACKBONES.names())
def test_backbone_ignores_padding_on_either_side(name: str) -> None:
    network = build("backbone", name)
    ids = torch.randint(10, 300, (1, 5), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        alone = network(network.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        for before, after in ((3, 0), (0, 3)):
            padded = torch.nn.functional.pad(ids, (before, after))
            mask = torch.nn.functional.pad(torch.ones_like(ids), (before, after)).bool()
            hidden = network(network.embed(padded), mask)[:, before : before + 5]
            torch.testing.assert_close(hidden, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES.names())
def test_backbone_gives_the_states_of_every_layer(name: str) -> None:
    network = build("backbone", name)
    ids = torch.randint(10, 300, (2, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :2] = False
    embeds = network.embed(ids)
    every = network.layer_states(embeds, mask)
    assert len(every) == len(network.decoder.layers)
    assert torch.equal(every[-1], network(embeds, mask))
    entered = []
    handle = network.decoder.layers[1].register_forward_pre_hook(
        lambda _, inputs: entered.append(inputs[0])
    )
    network.layer_states(embeds, mask)
    handle.remove()
    assert torch.equal(entered[0], every[0])


@pytest.mark.compile
@pytest.mark.parametrize("leaves_out_padding", [False, True])
@pytest.mark.parametrize("name", BACKBONES.names())
def test_compiled_layers_give_the_same_gradients(name: str, *, leaves_out_padding: bool) -> None:
    found = []
    for compiled in (False, True):
        network = build("backbone", name).train()
        if leaves_out_padding:
            network.padding_free = True
        if compiled:
            for layer in network.decoder.layers:
                layer.compile()
        for length in (9, 7):  # a second length makes the compiler handle a second shape
            ids, images = inputs("backbone", network.config)
            mask = torch.ones_like(ids[:, :length], dtype=torch.bool)
            mask[0, -1] = False
            states = network(embed(network, ids[:, :length], images), mask)
            states[mask].square().mean().backward()
            found.append([states[mask].detach()])
        found[-1] += [parameter.grad for parameter in network.decoder.parameters()]
    for ours, expected in zip(found[2] + found[3], found[0] + found[1], strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ENCODERS.names())
def test_encoder_refuses_images_of_another_size(name: str) -> None:
    network = build("encoder", name)
    side = network.config.image_px
    with pytest.raises(ValueError, match=rf"\[B, 3, {side}, {side}\]"):
        network(torch.zeros(1, 3, 2 * side, side))


@pytest.mark.parametrize("name", ENCODERS.names())
def test_encoder_tokens_run_row_by_row(name: str) -> None:
    """A change in the upper right quarter changes the tokens of that quarter most."""
    torch.manual_seed(0)
    network = ENCODERS.get(name).tiny().build().eval()
    config = network.config
    plain = torch.zeros(1, 3, config.image_px, config.image_px)
    changed = plain.clone()
    side = config.image_px // 2
    changed[..., :side, -side:] = torch.randn(3, side, side)
    with torch.no_grad():
        moved = (network(changed) - network(plain)).norm(dim=-1)[0]
    grid = moved.unflatten(0, (2, config.grid // 2, 2, config.grid // 2))
    assert int(grid.mean(dim=(1, 3)).flatten().argmax()) == 1


@pytest.mark.parametrize("name", DECODERS.names())
def test_decoded_images_depend_on_the_features(name: str) -> None:
    network = build("decoder", name)
    features, noise = inputs("decoder", network.config)
    with torch.no_grad():
        images = network.decode(features, noise, 3)
        other = network.decode(features.flip(0), noise, 3)
    assert float(images.abs().max()) <= 1.0
    assert float((images.abs() < 1.0).float().mean()) > 0  # some values are not clipped
    assert not torch.equal(images, other)


def test_pocket_velocity_leads_to_the_predicted_clean_image() -> None:
    network = build("decoder", "pocket")
    features, noisy = inputs("decoder", network.config)
    sigma = torch.full((ROWS,), 0.5)
    with torch.no_grad():
        clean = network.predict_clean(noisy, sigma, features)
        velocity = network.velocity(noisy, sigma, features)
    torch.testing.assert_close(noisy - 0.5 * velocity, clean, rtol=0, atol=1e-4)


def test_siglip2_can_skip_its_last_layer() -> None:
    """`skip_last=1` returns the states before the last layer, without the final norm."""
    config_class = ENCODERS.get("siglip2")
    torch.manual_seed(0)
    tiny = to_dict(config_class.tiny())
    deep = from_dict(config_class, {**tiny, "num_layers": 2, "skip_last": 1, "pool": 1}).build()
    pixels = inputs("encoder", deep.config)[0]
    with torch.no_grad():
        before = deep(pixels)
        for parameter in deep.tower.encoder.layers[1].parameters():
            parameter.zero_()
        assert torch.equal(deep(pixels), before)
        last = deep.tower.encoder.layers[0](deep.tower.embeddings(pixels), None)
        last = last[0] if isinstance(last, tuple) else last
    torch.testing.assert_close(before, last, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BACKBONES.names())
@torch.no_grad()
def test_a_block_of_tokens_reads_the_cache_and_itself(name: str) -> None:
    """One token as a block equals the next token; more tokens also see those after them."""
    network = build("backbone", name)
    ids = inputs("backbone", network.config)[0]
    ids[ids == network.config.image_token_id] = 11
    embeds, mask = network.embed(ids), torch.ones_like(ids, dtype=torch.bool)
    mask[0, :2] = False
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    expected = network(embeds, mask)

    def block(length: int, tokens: Tensor) -> Tensor:
        past, cache = ids.shape[1] - length, network.new_cache()
        network(embeds[:, :past], mask[:, :past], cache)
        return network.block_states(tokens, mask[:, :past], cache, positions[:, past:])

    torch.testing.assert_close(block(1, embeds[:, -1:]), expected[:, -1:], rtol=0, atol=1e-4)
    changed = embeds[:, -3:].clone()
    changed[:, -1] += 1
    assert not torch.allclose(block(3, embeds[:, -3:])[:, 0], block(3, changed)[:, 0], atol=1e-3)
