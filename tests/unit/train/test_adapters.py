"""Low-rank adapters: trained and saved alone, resumed exactly, merged into plain layers."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from blip3o.core.config import evolve
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.models.unified import UnifiedModelConfig
from blip3o.nn.linear import VectorLinear
from blip3o.train.adapters import add_adapters, merged_adapters
from blip3o.train.config import LoraConfig, RunConfig


@pytest.fixture
def config(toys: Any) -> RunConfig:
    pytest.importorskip("peft")
    return toys.with_train(adapter=LoraConfig(rank=2, dropout=0.2))


def state(model: nn.Module) -> dict[str, list[Any]]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def inputs() -> torch.Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_a_run_without_adapters_changes_nothing(toys: Any) -> None:
    model = toys.model()
    before = [id(module) for module in model.modules()]
    assert add_adapters(model, toys.config.train) == ("body", "head")
    with merged_adapters(model):
        assert [id(module) for module in model.modules()] == before


def test_only_adapters_are_trained_and_kept(toys: Any, config: RunConfig, tmp_path: Path) -> None:
    model = toys.model()
    before = state(model)
    trainer = toys.trainer(tmp_path, config, model=model)
    trainer.fit()
    weights = [f"{layer}.lora_{half}" for layer in ("body.0", "head") for half in "AB"]
    expected = {f"{name}.default.weight" for name in weights} | {"objectives.0.shift"}
    assert set(trainer.parameters) == expected
    for file in tmp_path.glob("checkpoints/*/model.safetensors"):
        assert set(load_file(file)) == expected
    after = state(model)
    for name, value in before.items():
        layer, _, leaf = name.rpartition(".")
        where = f"{layer}.base_layer.{leaf}" if f"{layer}.lora_A.default.weight" in after else name
        assert after[where] == value, name
    for name in weights:
        assert any(any(row) for row in after[f"{name}.default.weight"]), f"{name} learned nothing"


def test_fresh_adapters_change_no_output_and_depend_on_the_seed_alone(
    toys: Any, config: RunConfig
) -> None:
    plain, models = toys.model().eval()(inputs()), []
    for noise in (1, 2):
        model = toys.model().eval()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        add_adapters(model, config.train)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(model(inputs()), plain)
        models.append(state(model))
    assert models[0] == models[1]


def test_a_stopped_and_resumed_run_equals_one_in_one_go(
    toys: Any, config: RunConfig, tmp_path: Path, read_run: Callable[[Path], dict[str, Any]]
) -> None:
    config = evolve(config, {"train.log_every": 3, "train.checkpoint_every": 100})
    toys.trainer(tmp_path / "whole", config).fit()
    callbacks = [toys.stop_after(6, signal.SIGTERM)]
    with pytest.raises(PreemptedError):
        toys.trainer(tmp_path / "parts", config, callbacks=callbacks).fit()
    torch.manual_seed(99)  # earlier draws of the process must not matter
    toys.trainer(tmp_path / "parts", config).fit()
    assert read_run(tmp_path / "parts") == read_run(tmp_path / "whole")


def test_a_run_cannot_resume_with_other_adapters(
    toys: Any, config: RunConfig, tmp_path: Path
) -> None:
    toys.trainer(tmp_path, config).fit()
    with pytest.raises(UsageError, match=r"other settings of train\.adapter\.rank"):
        toys.trainer(tmp_path, evolve(config, {"train.adapter.rank": 3}))


def test_merged_layers_are_plain_and_compute_the_same_and_adapters_come_back(
    toys: Any, config: RunConfig
) -> None:
    model = toys.model()
    names = list(model.state_dict())
    add_adapters(model, config.train)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    adapted, before = model.eval()(inputs()), state(model)
    with merged_adapters(model):
        assert list(model.state_dict()) == names
        torch.testing.assert_close(model(inputs()), adapted, rtol=1e-5, atol=1e-5)
        assert (model(inputs()) - toys.model().eval()(inputs())).abs().max() > 0.1
    assert state(model) == before
    assert torch.equal(model(inputs()), adapted)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((), ["body.0", "head"]),
        (("head",), ["head"]),
        (("body.*",), ["body.0"]),
        (("0", "head"), ["body.0", "head"]),
    ],
)
def test_targets_choose_among_the_linear_layers_of_the_trainable_parts(
    toys: Any, config: RunConfig, targets: tuple[str, ...], expected: list[str]
) -> None:
    train = evolve(config, {"train.adapter.targets": targets}).train
    prefixes = add_adapters(toys.model(), train)
    assert prefixes == [f"{name}.lora_{half}" for name in expected for half in "AB"]


def test_learning_rates_of_parts_apply_to_their_adapters(
    toys: Any, config: RunConfig, tmp_path: Path
) -> None:
    config = evolve(config, {"train.optimizer.lr_multipliers": {"body": 0.5}})
    trainer = toys.trainer(tmp_path, config)
    factors = {
        id(p): group["lr_factor"]
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }
    found = {name: factors[id(p)] for name, p in trainer.parameters.items()}
    assert {factor for name, factor in found.items() if name.startswith("body.")} == {0.5}
    assert {factor for name, factor in found.items() if name.startswith("head.")} == {1.0}


@pytest.mark.parametrize(
    ("parts", "targets", "message"),
    [
        (["haed"], (), "unknown part to train 'haed'; did you mean head"),
        (["head"], ("haed",), r"train\.adapter\.targets 'haed'; did you mean head"),
        (["head"], ("body.0",), r"train\.adapter\.targets 'body\.0'; known: head"),
        (["body.1"], (), r"no linear layer in train\.trainable \(body\.1\)"),
    ],
)
def test_unmatched_names_are_refused_with_the_nearest(
    toys: Any, parts: list[str], targets: tuple[str, ...], message: str
) -> None:
    config = toys.with_train(adapter=LoraConfig(targets=targets), trainable=parts)
    with pytest.raises(UsageError, match=message):
        add_adapters(toys.model(), config.train)


def test_without_peft_the_error_says_how_to_install_it(
    toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"needs peft; install it: pip install 'blip3o\[lora\]'"):
        add_adapters(toys.model(), toys.with_train(adapter=LoraConfig()).train)


@pytest.mark.parametrize(
    ("key", "value"), [("rank", 0), ("alpha", 0.0), ("dropout", 1.0), ("ranks", 3)]
)
def test_bad_numbers_are_refused_by_name(toys: Any, key: str, value: float) -> None:
    with pytest.raises(UsageError, match=key):
        evolve(toys.config, {"train.adapter": {key: value}})


def test_layers_of_vectors_get_adapters_too(config: RunConfig) -> None:
    model = UnifiedModelConfig.tiny().build()
    layers = {
        n
        for n, m in model.get_submodule("generator.dit").named_modules()
        if isinstance(m, nn.Linear)
    }
    add_adapters(model, evolve(config.train, {"trainable": ["generator"]}))
    adapted = {
        n
        for n, m in model.get_submodule("generator.dit").named_modules()
        if hasattr(m, "get_delta_weight")
    }
    assert adapted == layers
    vectors = {
        n
        for n, m in model.get_submodule("generator.dit").named_modules()
        if type(m) is VectorLinear
    }
    assert {n.removesuffix(".base_layer") for n in vectors} < adapted
    with merged_adapters(model):
        assert {
            n
            for n, m in model.get_submodule("generator.dit").named_modules()
            if type(m) is VectorLinear
        } == {n.removesuffix(".base_layer") for n in vectors}


@pytest.mark.compile
def test_adapters_in_compiled_blocks_learn_like_plain_ones(toys: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    found = {}
    for compiled in (False, True):
        config = toys.with_train(adapter=LoraConfig(rank=2), compile=compiled)
        model = toys.model()
        model.__dict__["compile_targets"] = lambda model=model: [model.body]
        trainer = toys.trainer(tmp_path / str(compiled), config, model=model)
        trainer.fit()
        found[compiled] = {name: p.detach() for name, p in trainer.parameters.items()}
        with merged_adapters(model):
            found[compiled] |= dict(model.state_dict())
    assert found[True].keys() == found[False].keys()
    for name, expected in found[False].items():
        torch.testing.assert_close(found[True][name], expected, rtol=1e-4, atol=1e-5)
