"""Unmerged adapters in saved weights are merged as PEFT does, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip3o import cli
from blip3o.core.errors import UsageError
from blip3o.weights.convert import convert
from blip3o.weights.folder import load_model
from blip3o.weights.shards import open_tensors, read
from blip3o.weights.wrappers import unwrapped

peft = pytest.importorskip("peft")


class Net(nn.Module):
    """One layer of each kind that can have an adapter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 6)
        self.one = nn.Linear(6, 5)
        self.two = nn.ModuleList([nn.Linear(5, 7, bias=False), nn.Conv2d(3, 4, 3)])
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.one(self.table(ids))


def tuned(**settings: Any) -> Any:
    config = peft.LoraConfig(r=3, target_modules=["one", "two.0"], **settings)
    model = peft.get_peft_model(Net(), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter)
    return model


def save(model: Any, folder: Path) -> None:
    """Saves the whole state next to PEFT's own files, as a trainer without support for adapters."""
    model.save_pretrained(folder)
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"lora_alpha": 5},
    "rank stabilized": {"lora_alpha": 5, "use_rslora": True},
    "patterns": {"rank_pattern": {"one": 2}, "alpha_pattern": {r"two\.0": 7}},
    "saved modules": {"modules_to_save": ["head"]},
    "biases": {"bias": "lora_only"},
    "embedding": {"target_modules": ["table", "one"]},
    "convolution": {"target_modules": ["two.1"]},
    "all": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_a_merged_state_equals_that_of_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    targets = {"target_modules": ["one", "two.0"], **settings}
    config = peft.LoraConfig(r=3, **targets)
    model = peft.get_peft_model(Net(), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter)
    save(model, tmp_path)
    found = unwrapped(open_tensors(tmp_path), tmp_path)
    in_memory = unwrapped(model.state_dict(), tmp_path)
    expected = model.merge_and_unload().state_dict()
    assert found.keys() == in_memory.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(read(found[name]), value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(read(in_memory[name]), value, rtol=1e-6, atol=1e-6)
    assert any(not torch.equal(value, Net().state_dict()[name]) for name, value in expected.items())


def test_a_half_precision_weight_keeps_its_dtype(tmp_path: Path) -> None:
    model = tuned().to(torch.bfloat16)
    save(model, tmp_path)
    found = unwrapped(open_tensors(tmp_path), tmp_path)
    assert {read(tensor).dtype for tensor in found.values()} == {torch.bfloat16}


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        unwrapped(open_tensors(folder), folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def test_without_its_config_an_adapter_is_named(tmp_path: Path) -> None:
    save(tuned(), tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    said = refusal(tmp_path)
    for part in ("one.lora_A.default.weight", "adapter_config.json", "merge_and_unload"):
        assert part in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "not a plain LoRA"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"lora_alpha": None}, "no valid strength"),
        ({"lora_alpha": "8"}, "no valid strength"),
        ({"alpha_pattern": [1]}, "no valid strength"),
        ({"alpha_pattern": {"(": 1}}, "no valid strength"),
        ({"lora_alpha": float("inf")}, "no valid strength"),
    ],
)
def test_configs_of_other_adapters_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    save(tuned(), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"peft_type": "LORA"}'])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    save(tuned(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    assert "adapter" in refusal(tmp_path)


def test_other_adapters_are_named(tmp_path: Path) -> None:
    save(tuned(use_dora=True), tmp_path)
    assert "merge_and_unload" in refusal(tmp_path)
    for config in (
        peft.LoHaConfig(target_modules=["one"]),
        peft.LoKrConfig(target_modules=["one"]),
        peft.IA3Config(target_modules=["one"], feedforward_modules=[]),
        peft.OFTConfig(target_modules=["one"], oft_block_size=3),
        peft.VeraConfig(target_modules=["one"], r=2),
        peft.HRAConfig(target_modules=["one"], r=2),
        peft.LNTuningConfig(target_modules=["one"]),
        peft.VBLoRAConfig(target_modules=["one"], vector_length=1, num_vectors=8, topk=2),
        peft.FourierFTConfig(target_modules=["one"], n_frequency=4),
    ):
        folder = tmp_path / type(config).__name__
        save(peft.get_peft_model(Net(), config), folder)
        assert "merge_and_unload" in refusal(folder), folder


def test_several_adapters_are_refused(tmp_path: Path) -> None:
    model = tuned()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["one"]))
    save(model, tmp_path)
    assert "there are several (default, second)" in refusal(tmp_path)


def test_half_an_adapter_is_refused(tmp_path: Path) -> None:
    save(tuned(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in state if ".lora_B." in name)
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "model.safetensors")
    assert "lacks its weight or a half" in refusal(tmp_path)
    state[lost] = state[lost][:, :1].contiguous()
    save_file(state, tmp_path / "model.safetensors")
    assert "cannot take" in refusal(tmp_path)


def with_an_adapter(folder: Path) -> dict[str, Tensor]:
    """Adds an adapter to the query projections of a published folder; returns merged weights."""
    sums = {}
    for file in folder.glob("model-*.safetensors"):
        state = load_file(file)
        for name in [n for n in state if n.endswith("self_attn.q_proj.weight")]:
            weight = state[name].float()
            down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
            layer = name.removesuffix(".weight")
            state[f"{layer}.base_layer.weight"] = state.pop(name)
            state |= {f"{layer}.lora_A.default.weight": down, f"{layer}.lora_B.default.weight": up}
            sums[name] = (weight + 4 * up @ down).to(torch.bfloat16)
        save_file({f"base_model.model.{k}": v for k, v in state.items()}, file)
    index = folder / "model.safetensors.index.json"
    places = {k: f.name for f in folder.glob("model-*.safetensors") for k in load_file(f)}
    index.write_text(json.dumps({"weight_map": places}))
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8})
    )
    return sums


def test_a_tuned_published_folder_loads_and_converts(
    released_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = with_an_adapter(released_folder)
    assert sums
    convert(released_folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", to="published")
    for folder in (released_folder, tmp_path / "ours", tmp_path / "again"):
        state = load_model(folder, dtype=torch.bfloat16).model.backbone.decoder.state_dict()
        for name, value in sums.items():
            assert torch.equal(state[name.removeprefix("model.")], value)
    (released_folder / "adapter_config.json").unlink()
    assert cli.main(["convert", str(released_folder), str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "lora_A.default.weight" in said
    assert "merge_and_unload" in said


def test_a_folder_with_only_an_adapter_is_named(tmp_path: Path) -> None:
    tuned().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="merge_and_unload"):
        load_model(tmp_path)
