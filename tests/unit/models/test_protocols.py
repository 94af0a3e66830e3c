"""Every entry of the tables satisfies the interface of its part."""

import inspect
from typing import Any

import pytest
from torch import nn

from blip3o.models import protocols
from blip3o.models.absent import AbsentPart
from blip3o.models.backbones import BACKBONES
from blip3o.models.decoders import DECODERS
from blip3o.models.encoders import ENCODERS

PARTS: dict[str, tuple[Any, Any, type[nn.Module]]] = {
    "backbone": (BACKBONES, protocols.BackboneConfig, protocols.Backbone),
    "encoder": (ENCODERS, protocols.ImageEncoderConfig, protocols.ImageEncoder),
    "decoder": (DECODERS, protocols.ImageDecoderConfig, protocols.ImageDecoder),
}
NAMES = [(part, name) for part, (table, *_) in PARTS.items() for name in table.names()]

each_component = pytest.mark.parametrize(("part", "name"), NAMES)


@each_component
def test_configs_have_every_member_of_their_protocol(part: str, name: str) -> None:
    table, config_protocol, _ = PARTS[part]
    assert isinstance(table.get(name).tiny(), config_protocol)


@each_component
def test_modules_implement_every_method_of_their_base(part: str, name: str) -> None:
    table, _, base = PARTS[part]
    network = table.get(name).tiny().build()
    assert isinstance(network, base)
    for method, declared in inspect.getmembers(base, inspect.isfunction):
        if method in vars(base) and "raise NotImplementedError" in inspect.getsource(declared):
            has_tower = part != "backbone" or network.config.image_channels is None
            if method != "vision_inputs" or has_tower:
                assert getattr(type(network), method) is not declared, method


@each_component
def test_seams_are_methods(part: str, name: str) -> None:
    network = PARTS[part][0].get(name).tiny().build()
    assert network.seams
    assert all(callable(getattr(network, seam)) for seam in network.seams)


def test_the_stand_in_for_a_missing_part_has_the_seams_of_both() -> None:
    seams = {*protocols.ImageEncoder.seams, *protocols.ImageDecoder.seams}
    assert seams <= set(AbsentPart("image_decoder").seams)


@pytest.mark.parametrize("name", DECODERS.names())
def test_a_decoder_that_states_so_predicts_clean_images(name: str) -> None:
    config = DECODERS.get(name).tiny()
    assert isinstance(config.build(), protocols.CleanPredictor) == config.predicts_clean


def test_only_qwen2_5_vl_takes_images_of_any_shape() -> None:
    sides = {name: BACKBONES.get(name).tiny().token_px for name in BACKBONES.names()}
    assert sides == {"qwen3": None, "llama3": None, "qwen2_5_vl": 8}
