"""Every entry of the tables satisfies the interface of its part."""

import inspect
from typing import Any

import pytest
from torch import nn

from blip3o.models import protocols
from blip3o.models.absent import AbsentPart
from blip3o.models.backbones import BACKBONES
from blip3o.models.backbones.llama3 import Llama3BackboneConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.decoders import DECODERS
from blip3o.models.decoders.pocket import PocketDecoderConfig
from blip3o.models.decoders.sana import SanaDecoderConfig
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.models.decoders.vae import VaeDecoderConfig
from blip3o.models.encoders import ENCODERS
from blip3o.models.encoders.clip import ClipEncoderConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.encoders.pocket import PocketEncoderConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.encoders.vae import VaeEncoderConfig

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
    network: Any = table.get(name).tiny().build()
    assert isinstance(network, base)
    for method, declared in inspect.getmembers(base, inspect.isfunction):
        if method in vars(base) and "raise NotImplementedError" in inspect.getsource(declared):
            assert getattr(type(network), method) is not declared, method


def test_the_type_checker_accepts_every_config() -> None:
    backbones: list[protocols.BackboneConfig] = [
        Qwen3BackboneConfig.tiny(),
        Llama3BackboneConfig.tiny(),
        Qwen2_5VLBackboneConfig.tiny(),
    ]
    encoders: list[protocols.ImageEncoderConfig] = [
        PocketEncoderConfig.tiny(),
        Siglip2EncoderConfig.tiny(),
        EvaClipEncoderConfig.tiny(),
        ClipEncoderConfig.tiny(),
        VaeEncoderConfig.tiny(),
    ]
    decoders: list[protocols.ImageDecoderConfig] = [
        PocketDecoderConfig.tiny(),
        SdxlDecoderConfig.tiny(),
        SanaDecoderConfig.tiny(),
        VaeDecoderConfig.tiny(),
    ]
    kinds = {config.kind for config in (*backbones, *encoders, *decoders)}
    assert kinds == {name for _, name in NAMES}


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


@pytest.mark.parametrize("name", DECODERS.names())
def test_a_decoder_that_states_so_predicts_latents(name: str) -> None:
    config = DECODERS.get(name).tiny()
    network = config.build()
    assert isinstance(network, protocols.LatentPredictor) == config.predicts_latents
    if config.predicts_latents:
        for method in ("encode_latents", "add_noise", "predict"):
            assert getattr(type(network), method) is not getattr(protocols.LatentPredictor, method)


def test_only_qwen2_5_vl_takes_images_of_any_shape() -> None:
    sides = {name: BACKBONES.get(name).tiny().token_px for name in BACKBONES.names()}
    assert sides == {"pocket": None, "qwen3": None, "llama3": None, "qwen2_5_vl": 8}
