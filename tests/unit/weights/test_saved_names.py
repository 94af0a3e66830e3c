"""Weights under the names that trainers and newer libraries save them by are read as they are."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip3o.core.errors import UsageError
from blip3o.models.unified import UnifiedModel
from blip3o.weights.folder import load_model
from blip3o.weights.keymaps import blip3o_qwen, blip3o_qwen3
from blip3o.weights.pickles import read_pickles
from blip3o.weights.wrappers import plain_name, unwrapped

INDEX = "model.safetensors.index.json"


def main_state(folder: Path) -> dict[str, Tensor]:
    """Returns the main weights of a folder, and takes its files away."""
    state: dict[str, Tensor] = {}
    for file in [*folder.glob("model-*.safetensors"), *folder.glob("model.safetensors")]:
        state |= load_file(file)
        file.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    return state


def save(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(
        {name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors"
    )


def rename(folder: Path, new_name: Callable[[str], str]) -> None:
    save(folder, {new_name(name): tensor for name, tensor in main_state(folder).items()})


def require_same(found: UnifiedModel, expected: UnifiedModel) -> None:
    assert found.config == expected.config
    states = found.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def load(folder: Path) -> UnifiedModel:
    return load_model(folder, dtype=torch.bfloat16).model


# ---------------------------------------------------------------------------------------------
# Wrappers

LAYER = "layers."


def before(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def around_layers(wrapper: str) -> Callable[[str], str]:
    """A wrapper around each layer: `layers.0.X` becomes `layers.0.WRAPPER.X`."""

    def renamed(name: str) -> str:
        parts = name.split(".")
        places = [i for i, part in enumerate(parts[:-2]) if part in ("layers", "blocks")]
        for place in reversed(places):
            parts.insert(place + 2, wrapper)
        return ".".join(parts)

    return renamed


def around_matrices(wrapper: str) -> Callable[[str], str]:
    """A wrapper around each projection: `q_proj.weight` becomes `q_proj.WRAPPER.weight`."""

    def renamed(name: str) -> str:
        front, _, leaf = name.rpartition(".")
        return f"{front}.{wrapper}.{leaf}" if front.endswith("_proj") else name

    return renamed


WRAPPINGS: dict[str, tuple[Callable[[str], str], ...]] = {
    "DDP": (before("module."),),
    "compile": (before("_orig_mod."),),
    "compiled DDP": (before("_orig_mod."), before("module.")),
    "DDP of a compiled one": (before("module."), before("_orig_mod.")),
    "DDP twice": (before("module.module."),),
    "FSDP": (around_layers("_fsdp_wrapped_module"), before("_fsdp_wrapped_module.")),
    "old FSDP": (around_layers("_fsdp_wrapped_module._fpw_module"),),
    "FSDP, checkpointed, compiled": (
        around_layers("_orig_mod"),
        around_layers("_checkpoint_wrapped_module"),
        around_layers("_fsdp_wrapped_module"),
        before("_fsdp_wrapped_module."),
    ),
    "compiled layers": (around_layers("_orig_mod"),),
    "PEFT": (around_matrices("base_layer"), before("base_model.model.")),
    "DDP of PEFT": (around_matrices("base_layer"), before("module.base_model.model.")),
    "PEFT of a compiled one": (before("base_model.model._orig_mod."),),
    "compiled PEFT of FSDP": (
        around_layers("_fsdp_wrapped_module"),
        around_matrices("base_layer"),
        before("_orig_mod.base_model.model._fsdp_wrapped_module."),
    ),
    "PEFT twice": (before("base_model.model.base_model.model."),),
    "Lightning Fabric": (before("_forward_module.module."),),
}

each_wrapping = pytest.mark.parametrize("steps", WRAPPINGS.values(), ids=WRAPPINGS.keys())


def wrapped(name: str, steps: tuple[Callable[[str], str], ...]) -> str:
    for step in steps:
        name = step(name)
    return name


@each_wrapping
def test_a_published_folder_of_a_wrapped_model(
    released_folder: Path, steps: tuple[Callable[[str], str], ...]
) -> None:
    expected = load(released_folder)
    rename(released_folder, lambda name: wrapped(name, steps))
    require_same(load(released_folder), expected)


@each_wrapping
def test_our_folder_of_a_wrapped_model(
    tiny_folder: Path, tmp_path: Path, steps: tuple[Callable[[str], str], ...]
) -> None:
    expected = load(tiny_folder)
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    rename(folder, lambda name: wrapped(name, steps))
    require_same(load(folder), expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_wrappers_in_any_order(released_folder: Path, count: int) -> None:
    names = list(main_state(released_folder))
    wrappers = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")
    for order in itertools.permutations(wrappers, count):
        assert [plain_name("".join(order) + name) for name in names] == names


def test_real_wrappers(tmp_path: Path) -> None:
    """Whatever torch and PEFT put into names today."""
    peft = pytest.importorskip("peft")
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.optim.swa_utils import AveragedModel

    def model() -> nn.Module:
        return nn.ModuleDict({"dit": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})

    names = set(model().state_dict())
    outer: Any = torch.compile(nn.DataParallel(checkpoint_wrapper(model())))
    assert set(unwrapped(outer.state_dict(), tmp_path)) == names
    assert set(unwrapped(AveragedModel(model()).state_dict(), tmp_path)) == names
    config = peft.LoraConfig(target_modules=["dit.0"], modules_to_save=["dit.1"])
    tuned = peft.get_peft_model(model(), config)
    tuned.save_pretrained(tmp_path)
    state = tuned.state_dict()
    assert set(unwrapped(state, tmp_path)) == names
    assert any(".modules_to_save." in name for name in state)


def test_what_was_trained_takes_the_place_of_the_original(released_folder: Path) -> None:
    state = main_state(released_folder)
    name = "model.norm.weight"
    old = state.pop(name)
    state["model.norm.modules_to_save.default.weight"] = old + 1
    state["model.norm.original_module.weight"] = old
    save(released_folder, {f"base_model.model.{key}": value for key, value in state.items()})
    assert torch.equal(load(released_folder).backbone.decoder.norm.weight, old + 1)


def test_a_weight_that_comes_twice_is_refused(released_folder: Path) -> None:
    state = main_state(released_folder)
    save(released_folder, state | {"module.model.norm.weight": state["model.norm.weight"]})
    with pytest.raises(UsageError, match=r"come twice, with and without .*: model\.norm\.weight"):
        load(released_folder)


def test_flattened_weights_are_named(released_folder: Path) -> None:
    main_state(released_folder)
    save(released_folder, {"_fsdp_wrapped_module._flat_param": torch.zeros(3)})
    with pytest.raises(UsageError, match=r"flattened by FSDP .*FULL_STATE_DICT"):
        load(released_folder)


def test_gathered_too_late(released_folder: Path) -> None:
    state = main_state(released_folder)
    save(released_folder, {name: torch.zeros(0) for name in state})
    with pytest.raises(UsageError, match=r"DeepSpeed ZeRO-3 leaves: .*zero_to_fp32") as caught:
        load(released_folder)
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("adapter_model.safetensors", "merge_and_unload"),
        ("zero_to_fp32.py", "zero_to_fp32.py"),
        ("__0_0.distcp", "merge-weights"),
        ("pytorch_model_fsdp_0", "merge-weights"),
    ],
)
def test_other_forms_of_weights_are_named(released_folder: Path, file: str, said: str) -> None:
    main_state(released_folder)
    (released_folder / file).write_text("x")
    with pytest.raises(UsageError, match=f"no whole model: .*{said}"):
        load(released_folder)


def test_computed_buffers_of_older_versions_are_passed_over(released_folder: Path) -> None:
    expected = load(released_folder)
    state = main_state(released_folder)
    state |= {
        "model.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "visual.rotary_pos_emb.inv_freq": torch.ones(4),
        "n_averaged": torch.tensor(3),
    }
    save(released_folder, state)
    require_same(load(released_folder), expected)


@pytest.mark.parametrize("key", ["module", "model", "state_dict", "model_state_dict"])
def test_pickles_of_trainers_hold_the_weights_under_a_key(tmp_path: Path, key: str) -> None:
    state = {"module.weight": torch.arange(3.0)}
    torch.save({key: state, "optimizer": {"lr": 1.0}, "step": 3}, tmp_path / "pytorch_model.bin")
    assert read_pickles(tmp_path).keys() == state.keys()


# ---------------------------------------------------------------------------------------------
# Newer versions of transformers


def in_language_model(name: str) -> str:
    """The names inside a model of transformers 4.52 and later."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith(("model.embed_tokens.", "model.layers.", "model.norm.")):
        return name.replace("model.", "model.language_model.", 1)
    return name


def all_in_language_model(name: str) -> str:
    """The renaming rule of transformers 5 applied to what it does not know."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name[:6] == "model." else name


def without_head(name: str) -> str:
    """As the model inside the one with the head saves itself."""
    return in_language_model(name).removeprefix("model.")


def older_converter(name: str) -> str:
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return in_language_model(name).replace("model.language_model.", "language_model.model.")


SPELLINGS = [in_language_model, all_in_language_model, without_head, older_converter]

each_spelling = pytest.mark.parametrize("spell", SPELLINGS, ids=lambda one: one.__name__)


@each_spelling
@pytest.mark.parametrize("prefix", ["", "module.", "base_model.model._orig_mod."])
def test_names_of_newer_versions(
    released_folder: Path, spell: Callable[[str], str], prefix: str
) -> None:
    expected = load(released_folder)
    rename(released_folder, lambda name: prefix + spell(name))
    require_same(load(released_folder), expected)


def test_two_spellings_of_one_weight_are_refused(released_folder: Path) -> None:
    state = main_state(released_folder)
    save(
        released_folder,
        state | {"model.language_model.norm.weight": state["model.norm.weight"]},
    )
    with pytest.raises(UsageError, match=r"in two spellings: model\.norm\.weight"):
        load(released_folder)


TEXT = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
)


def version_5(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a flat config.json as transformers 5 nests it."""
    text = {name: data[name] for name in TEXT}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": data["rope_theta"],
        "mrope_section": data["rope_scaling"]["mrope_section"],
    }
    text |= {"model_type": "qwen2_5_vl_text", "dtype": "bfloat16"}
    rest = {k: v for k, v in data.items() if k not in (*TEXT, "rope_theta", "rope_scaling")}
    vision = dict(rest["vision_config"])
    vision["in_channels"] = vision.pop("in_chans")
    return rest | {"text_config": text, "dtype": "bfloat16", "vision_config": vision}


def version_4_52(data: dict[str, Any]) -> dict[str, Any]:
    """Flat and nested at once, with the old form of rotary positions."""
    nested = version_5(data)
    nested["text_config"] |= {k: data[k] for k in ("rope_theta", "rope_scaling")}
    del nested["text_config"]["rope_parameters"]
    return {**data, **nested, "hidden_size": 1, "rope_theta": 5.0}  # what is nested counts


def everything_nested(data: dict[str, Any]) -> dict[str, Any]:
    """As a class that hands all its fields to the language model's config writes them."""
    nested = version_5(data)
    moved = ("gen_vision_tower", "gen_pooling", "n_query", "image_token_id", "tie_word_embeddings")
    nested["text_config"] |= {name: nested.pop(name) for name in moved}
    return nested


def without_a_word_on_ties(data: dict[str, Any]) -> dict[str, Any]:
    nested = version_5(data)
    del nested["tie_word_embeddings"]
    return nested


def both_words_on_ties(data: dict[str, Any]) -> dict[str, Any]:
    nested = version_5(data)
    nested["text_config"]["tie_word_embeddings"] = not nested["tie_word_embeddings"]
    return nested


def other_names_of_the_tower(data: dict[str, Any]) -> dict[str, Any]:
    nested = version_5(data)
    vision = nested["vision_config"]
    vision["num_hidden_layers"] = vision.pop("depth")
    vision["num_attention_heads"] = vision.pop("num_heads")
    vision["spatial_patch_size"] = vision.pop("patch_size")
    vision["temporal_patch_size"] = [vision["temporal_patch_size"]]
    nested["image_token_index"] = nested.pop("image_token_id")
    return nested


def rope_by_layers(data: dict[str, Any]) -> dict[str, Any]:
    nested = version_5(data)
    text = nested["text_config"]
    text["rope_parameters"] = {"full_attention": text["rope_parameters"]}
    return nested


VERSIONS = [
    version_5,
    version_4_52,
    everything_nested,
    without_a_word_on_ties,
    both_words_on_ties,
    other_names_of_the_tower,
    rope_by_layers,
]


@pytest.mark.parametrize("written", VERSIONS, ids=lambda one: one.__name__)
def test_configs_of_newer_versions(
    released_folder: Path, written: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    expected = load(released_folder)
    file = released_folder / "config.json"
    file.write_text(json.dumps(written(json.loads(file.read_text()))))
    require_same(load(released_folder), expected)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "'yarn'"),
        ("text_config", {"rope_parameters": {"mrope_section": [1, 1, 2]}}, "'rope_theta'"),
        ("text_config", {"rope_parameters": {"rope_theta": 1e6}}, "published model is unfit"),
        ("text_config", {"rope_parameters": 3}, "published model is unfit"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act must be silu"),
        ("text_config", {"use_sliding_window": True, "max_window_layers": 0}, "sliding"),
        ("vision_config", {"hidden_act": "gelu"}, "vision_config.hidden_act must be silu"),
        ("vision_config", {"in_channels": 4}, "in_channels must be 3"),
        ("vision_config", {"patch_size": [4, 8]}, "a square's side"),
    ],
)
def test_what_would_give_other_numbers_is_refused(
    released_folder: Path, part: str, changes: dict[str, Any], said: str
) -> None:
    file = released_folder / "config.json"
    data = version_5(json.loads(file.read_text()))
    data[part] |= changes
    file.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=said):
        load(released_folder)


@pytest.mark.parametrize("tied", [False, True])
def test_configs_and_weights_that_transformers_writes_now(tmp_path: Path, tied: bool) -> None:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VLForConditionalGeneration,
    )

    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    config = Qwen2_5_VLConfig(
        text_config={
            **sizes,
            **heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 7e5,
                "mrope_section": [1, 1, 2],
            },
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=tied,
        image_token_id=60,
    )
    torch.manual_seed(0)
    theirs: Any = Qwen2_5_VLForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    own = blip3o_qwen.backbone_config(written)
    assert (own.rope_theta, own.tie_word_embeddings, own.vision.patch_px) == (7e5, tied, 14)
    state: dict[str, Tensor] = {**theirs.state_dict(), **load_file(tmp_path / "model.safetensors")}
    for names in (load_file(tmp_path / "model.safetensors"), theirs.state_dict()):
        plain = blip3o_qwen.plain(names, None, "it")
        assert all(blip3o_qwen.NAMES.ours(name) for name in plain)
        ours = {(blip3o_qwen.NAMES.ours(name) or ""): value for name, value in plain.items()}
        backbone = own.build().eval()
        if tied:
            ours.pop("backbone.lm_head.weight", None)
        backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in ours.items()})
        ids = torch.arange(8)[None]
        with torch.no_grad():
            hidden = backbone(backbone.embed(ids), torch.ones_like(ids, dtype=torch.bool))
            expected = theirs(input_ids=ids).logits
        torch.testing.assert_close(backbone.logits(hidden), expected, rtol=0, atol=1e-5)
    assert state


@pytest.mark.parametrize("tied", [False, True])
def test_qwen3_and_siglip_that_transformers_writes_now(tmp_path: Path, tied: bool) -> None:
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM
    from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipVisionModel

    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    theirs: Any = Qwen3ForCausalLM(
        Qwen3Config(
            **sizes,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 7e5},
            tie_word_embeddings=tied,
        )
    ).eval()
    tower: Any = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        )
    )
    theirs.save_pretrained(tmp_path / "text")
    tower.save_pretrained(tmp_path / "tower")
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("text", "tower")]
    config = blip3o_qwen3.backbone_config(configs[0], configs[1], image_token_id=60)
    assert (config.rope_theta, config.tie_word_embeddings) == (7e5, tied)
    seen = load_file(tmp_path / "tower/model.safetensors")
    state = load_file(tmp_path / "text/model.safetensors")
    state |= {f"model.vision_tower.{name}": value for name, value in seen.items()}
    backbone: Any = config.build().eval()

    class Model(nn.Module):  # load_published asks for a unified model's names
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

    parts = ["backbone.decoder", "backbone.vision_tower"] + ["backbone.lm_head"] * (not tied)
    model: Any = Model()
    blip3o_qwen3.load_published(model, state, "it", parts)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        hidden = backbone(backbone.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        expected = theirs(input_ids=ids).logits
    torch.testing.assert_close(backbone.logits(hidden), expected, rtol=0, atol=1e-5)
