"""Weights under the names of trainers' wrappers and of newer transformers are read unchanged."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip3o.core.errors import UsageError
from blip3o.models.backbones import BACKBONES
from blip3o.models.decoders import DECODERS
from blip3o.models.encoders import ENCODERS
from blip3o.models.generators import GENERATORS
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.weights import shards
from blip3o.weights.adapters import is_adapter
from blip3o.weights.convert import convert
from blip3o.weights.folder import load_model
from blip3o.weights.pickles import read_pickles
from blip3o.weights.wrappers import plain_name, unwrapped

INDEX = "model.safetensors.index.json"


def main_state(folder: Path) -> dict[str, Tensor]:
    """Returns the main weights of a folder and removes their files."""
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
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


def load(folder: Path) -> UnifiedModel:
    return load_model(folder, dtype=torch.bfloat16).model


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


@pytest.mark.parametrize("table", [BACKBONES, ENCODERS, DECODERS], ids=lambda t: t.what)
def test_no_part_of_our_models_has_the_name_of_a_wrapper(table: Any) -> None:
    for kind in table.names():
        for name in table.get(kind).tiny().build().state_dict():
            assert plain_name(name) == name
            assert not is_adapter(name)


def test_no_generator_has_a_wrapper_s_name() -> None:
    config = UnifiedModelConfig.tiny()
    for kind in GENERATORS.names():
        for name in GENERATORS.get(kind).tiny().build(config.joints).state_dict():
            assert plain_name(f"generator.{name}") == f"generator.{name}"
            assert not is_adapter(name)


def test_real_wrappers(tmp_path: Path) -> None:
    """The names that the installed torch and PEFT add."""
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


def test_a_trained_copy_replaces_the_original(released_folder: Path) -> None:
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


def test_empty_weights_of_zero_3_are_refused(released_folder: Path) -> None:
    state = main_state(released_folder)
    save(released_folder, {name: torch.zeros(0) for name in state})
    with pytest.raises(UsageError, match=r"come from DeepSpeed ZeRO-3: .*zero_to_fp32") as caught:
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
    with pytest.raises(UsageError, match=f"not a whole model: .*{said}"):
        load(released_folder)


def test_computed_buffers_of_older_versions_are_skipped(released_folder: Path) -> None:
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


def in_language_model(name: str) -> str:
    """Names of weights in a model of transformers 4.52 and later."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith(("model.embed_tokens.", "model.layers.", "model.norm.")):
        return name.replace("model.", "model.language_model.", 1)
    return name


def all_in_language_model(name: str) -> str:
    """Names after the renaming rule of transformers 5 is applied to unknown names."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name[:6] == "model." else name


def without_head(name: str) -> str:
    """Names of the inner model, without the model that adds the head."""
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


def test_an_index_that_transformers_left_next_to_one_file(released_folder: Path) -> None:
    expected = load(released_folder)
    index = (released_folder / INDEX).read_text()
    save(released_folder, main_state(released_folder))  # its shards are removed
    (released_folder / INDEX).write_text(index)
    require_same(load(released_folder), expected)


def test_shards_of_a_variant_as_diffusers_writes_them(released_folder: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    expected = load(released_folder)
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        folder = released_folder / "diffusion-decoder" / name
        part: Any = kind.from_pretrained(folder, variant="bf16", torch_dtype=torch.bfloat16)
        for file in folder.glob("*.safetensors"):
            file.unlink()
        part.save_pretrained(folder, variant="bf16", max_shard_size="20KB")
        assert (folder / "diffusion_pytorch_model.safetensors.index.bf16.json").exists()
    require_same(load(released_folder), expected)


def test_shards_of_a_variant_are_written_for_diffusers(
    released_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 20_000)
    convert(released_folder, tmp_path / "again", "published")
    folder = tmp_path / "again" / "diffusion-decoder" / "unet"
    assert len(list(folder.glob("*.safetensors"))) > 1
    part: Any = UNet2DConditionModel.from_pretrained(folder, variant="bf16")
    assert part is not None
    require_same(load(tmp_path / "again"), load(released_folder))
