"""The training loop: exact resume, exact accumulation, refusals."""

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blip3o.core.config import evolve, from_dict, read_yaml
from blip3o.core.errors import NotFiniteError, PreemptedError, UsageError
from blip3o.core.types import Batch, LossOutput
from blip3o.train.callbacks import Callback, Training
from blip3o.train.config import RunConfig
from blip3o.train.environment import Notes

ReadRun = Callable[[Path], dict[str, Any]]


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stopped_and_resumed_run_equals_one_in_one_go(
    toys: Any, tmp_path: Path, read_run: ReadRun, number: int
) -> None:
    config = toys.with_train(log_every=3, checkpoint_every=100)
    toys.trainer(tmp_path / "whole", config).fit()
    stopping = toys.trainer(tmp_path / "parts", config, callbacks=[toys.stop_after(6, number)])
    with pytest.raises(PreemptedError, match="stopped at step 6 after saving"):
        stopping.fit()
    torch.manual_seed(99)  # earlier draws of the process must not matter
    toys.trainer(tmp_path / "parts", config).fit()
    assert read_run(tmp_path / "parts") == read_run(tmp_path / "whole")


def test_a_run_with_a_closed_stderr_still_saves(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toys.with_train(log_every=3, checkpoint_every=100)
    stopping = toys.trainer(tmp_path, config, callbacks=[toys.stop_after(3, signal.SIGINT)])
    reader, writer = os.pipe()
    os.close(reader)  # Ctrl-C ends the `tee` of `blip3o train ... 2>&1 | tee log`, too
    kept = os.dup(2)
    with os.fdopen(os.dup(writer), "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        try:
            os.dup2(writer, 2)
            with pytest.raises(PreemptedError, match="stopped at step 3 after saving"):
                stopping.fit()
        finally:
            os.dup2(kept, 2)
            os.dup2(kept, stream.fileno())
    os.close(kept)
    os.close(writer)
    assert (tmp_path / "latest").read_text() == "step-00000003\n"


def test_averages_over_a_stop_between_two_log_lines_equal_those_of_one_go(
    toys: Any, tmp_path: Path, read_run: ReadRun
) -> None:
    toys.trainer(tmp_path / "whole").fit()
    config = toys.config  # logs every 5, saves every 4

    def killed(trainer: Training, step: int, folder: Path) -> None:
        if step == 8:
            raise ZeroDivisionError

    callback = type("Killer", (Callback,), {"on_checkpoint": staticmethod(killed)})()
    with pytest.raises(ZeroDivisionError):
        toys.trainer(tmp_path / "parts", config, callbacks=[callback]).fit()
    toys.trainer(tmp_path / "parts", config).fit()
    assert read_run(tmp_path / "parts") == read_run(tmp_path / "whole")
    steps = [row["step"] for row in read_run(tmp_path / "parts")["metrics"]]
    assert steps == [5, 10, 12]


@pytest.mark.parametrize("steps", [12, 1])
def test_a_run_at_or_past_its_last_step_says_so_and_trains_nothing(
    toys: Any, tmp_path: Path, capsys: pytest.CaptureFixture, read_run: ReadRun, steps: int
) -> None:
    toys.trainer(tmp_path).fit()
    before = read_run(tmp_path)
    ended: list[int] = []
    callback = type(
        "E", (Callback,), {"on_end": lambda self, trainer: ended.append(trainer.state.step)}
    )()
    config = evolve(toys.config, {"train.steps": steps})
    capsys.readouterr()
    toys.trainer(tmp_path, config, callbacks=[callback]).fit()
    assert f"is finished: step 12 of {steps}" in capsys.readouterr().err
    assert read_run(tmp_path) == before
    assert ended == [12]


def test_more_steps_continue_from_the_last_one(
    toys: Any, tmp_path: Path, read_run: ReadRun
) -> None:
    toys.trainer(tmp_path).fit()
    toys.trainer(tmp_path, toys.with_train(steps=14, log_every=2)).fit()
    assert [row["step"] for row in read_run(tmp_path)["metrics"]] == [5, 10, 12, 14]


def test_other_settings_are_refused_before_anything_is_written(toys: Any, tmp_path: Path) -> None:
    toys.trainer(tmp_path).fit()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    changed = evolve(toys.config, {"train.optimizer.lr": 0.01, "train.seed": 3})
    with pytest.raises(UsageError, match=r"settings of train\.seed, train\.optimizer\.lr;"):
        toys.trainer(tmp_path, changed)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_damaged_checkpoints_never_start_over(toys: Any, tmp_path: Path) -> None:
    toys.trainer(tmp_path).fit()
    for file in tmp_path.glob("checkpoints/*/*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(UsageError, match="can be read"):
        toys.trainer(tmp_path).fit()


class Linear(nn.Module):
    """A model without batch statistics: the size of a batch does not matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(values).tanh())


def test_micro_batches_add_up_to_the_whole_batch(toys: Any, tmp_path: Path) -> None:
    gradients = []
    for micro in (12, 5, 1):
        trainer = toys.trainer(tmp_path / str(micro), model=Linear())
        groups = next(toys.loader(12, micro)(0))
        trainer._step(groups, 0.0)
        gradients.append([p.grad for p in trainer.parameters.values()])
    for others in gradients[1:]:
        for grad, expected in zip(others, gradients[0], strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


class Textual(nn.Module):
    """A loss and a text loss of one pass; rows of different lengths spread them unevenly."""

    needs_pixels, regions, samples, tasks = False, None, None, ("text",)
    weight, text_weight = 5.0, 0.5

    def count(self, batch: Batch) -> float:
        return float((batch.attention_mask.sum(1) > 2).sum())  # 0 in some micro-batches

    def text_count(self, batch: Batch) -> float:
        return float(batch.attention_mask.sum())

    def forward(self, model: nn.Module, batch: Batch, seed: int) -> LossOutput:
        lengths = batch.attention_mask.sum(1)
        values = model(batch.input_ids.float() / 10).square().mean(-1)
        text_sum = (values.sin() * lengths).sum()
        metrics = {"text_loss": (text_sum.detach(), self.text_count(batch))}
        loss_sum = (values * (lengths > 2)).sum()
        return LossOutput(
            loss_sum=loss_sum, count=self.count(batch), metrics=metrics, text_sum=text_sum
        )


def test_a_loss_and_its_text_loss_are_divided_by_counts_of_their_own(
    toys: Any, tmp_path: Path
) -> None:
    found = []
    for micro in (12, 5, 1):
        objective = Textual()
        config = toys.with_train(grad_clip=1e9)
        trainer = toys.trainer(
            tmp_path / str(micro), config, model=Linear(), objectives=[objective]
        )
        sums = trainer._step(next(toys.loader(12, micro)(0)), 0.0)
        found.append((sums["loss"][0], [p.grad for p in trainer.parameters.values()]))
    [whole] = next(toys.loader(12, 12)(0))
    output = objective(model := Linear(), whole, 0)
    assert output.text_sum is not None
    text_mean = output.text_sum / objective.text_count(whole)
    total = 5.0 * output.loss_sum / objective.count(whole) + 0.5 * text_mean
    total.backward()
    for loss, gradients in found:
        assert loss == pytest.approx(float(total.detach()), rel=1e-5)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)
    assert sums["Textual/text_loss"][1] == objective.text_count(whole)


def test_a_weighted_mean_over_everything_counted_is_logged(toys: Any, tmp_path: Path) -> None:
    model = Linear()
    objectives = [toys.objective(), toys.objective(weight=0.5)]
    trainer = toys.trainer(tmp_path, model=model, objectives=objectives)
    [batch] = next(toys.loader(8, 8)(0))
    output = objectives[0](model, batch, 0)
    mean = float(output.loss_sum.detach()) / output.count
    sums = trainer._step([batch], 0.0)
    assert sums["loss"] == (pytest.approx(1.5 * mean, rel=1e-5), 1.0)
    for name in ("ToyObjective", "ToyObjective-2"):
        value, count = sums[f"{name}/loss"]
        assert value / count == pytest.approx(mean, rel=1e-5)
        assert sums[f"{name}/rows"][1] == 8


def test_gradients_are_clipped_together_and_logged_before(toys: Any, tmp_path: Path) -> None:
    trainer = toys.trainer(tmp_path, toys.with_train(grad_clip=0.01), model=Linear())
    sums = trainer._step(next(toys.loader()(0)), 0.0)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trainer.parameters.values()))
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert sums["grad_norm"][0] > 0.01


def test_a_step_that_is_not_finite_updates_nothing_and_is_counted(
    toys: Any, tmp_path: Path, capsys: pytest.CaptureFixture, read_run: ReadRun
) -> None:
    objective = toys.objective()
    objective.poison = {4 * 3 + 1}  # a sample of step 3
    seen: dict[int, list[Any]] = {}

    class Watch(Callback):
        def on_log(self, trainer: Training, step: int, values: Mapping[str, float]) -> None:
            seen[step] = [
                [p.tolist() for p in trainer.parameters.values()],
                [a.tolist() for a in trainer.ema.averages.values()],
                [s["step"].item() for s in trainer.optimizer.state.values()],
            ]

    config = toys.with_train(log_every=1)
    toys.trainer(tmp_path, config, objectives=[objective], callbacks=[Watch()]).fit()
    assert seen[4] == seen[3]
    assert seen[5] != seen[4]
    assert "step 3 was not finite" in capsys.readouterr().err
    rows = read_run(tmp_path)["metrics"]
    assert [row["nonfinite_steps"] for row in rows] == [0, 0, 0, *[1] * 9]
    assert "loss" not in rows[3]
    assert math.isfinite(rows[4]["loss"])


def test_too_many_steps_that_are_not_finite_end_the_run(toys: Any, tmp_path: Path) -> None:
    objective = toys.objective()
    objective.poison = set(range(100))
    config = toys.with_train(max_nonfinite_steps=2)
    with pytest.raises(UsageError, match=r"3 steps were not finite.*max_nonfinite_steps=2"):
        toys.trainer(tmp_path, config, objectives=[objective]).fit()


@pytest.mark.parametrize("where", ["on_sample", "on_end"])
def test_non_finite_values_in_a_callback_lead_to_advice(
    toys: Any, tmp_path: Path, where: str
) -> None:
    def fail(*_: object) -> None:
        raise NotFiniteError("pixels hold values that are not numbers")

    callback = type("Fails", (Callback,), {where: staticmethod(fail)})()
    config = toys.with_train(sample_every=12)
    with pytest.raises(UsageError, match=r"diverged .*lower train\.optimizer\.lr"):
        toys.trainer(tmp_path, config, callbacks=[callback]).fit()


def test_non_finite_averages_are_never_passed_to_callbacks(toys: Any, tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_log(self, trainer: Training, step: int, values: Mapping[str, float]) -> None:
            if step == 12:
                trainer.ema.averages["head.weight"][0] = float("nan")

        def on_end(self, trainer: Training) -> None:
            raise AssertionError

    with pytest.raises(UsageError, match=r"weights are not numbers.*lower train\.optimizer\.lr"):
        toys.trainer(tmp_path, callbacks=[Spoil()]).fit()


def test_a_run_of_steps_that_updated_nothing_leaves_no_model(toys: Any, tmp_path: Path) -> None:
    objective = toys.objective()
    objective.poison = set(range(8, 100))
    with pytest.raises(UsageError, match=r"10 steps were not finite.*lower train\.optimizer\.lr"):
        toys.trainer(tmp_path, objectives=[objective]).fit()


def test_notes_of_a_start_are_written_to_its_files(toys: Any, tmp_path: Path) -> None:
    trainer = toys.trainer(tmp_path)
    trainer._notes = Notes(environment={"data": {"own": 3}}, metrics={"data_changes": 2})
    trainer.fit()
    assert json.loads((tmp_path / "env.json").read_text())["data"] == {"own": 3}
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert row["data_changes"] == 2


def test_a_task_without_an_objective_is_named(toys: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no objective learns from the task 'text'"):
        toys.trainer(tmp_path, objectives=[toys.objective(tasks=("edit",))]).fit()


def test_an_objective_without_a_gradient_is_named(toys: Any, tmp_path: Path) -> None:
    objective = toys.objective()
    del objective.shift
    objective.shift = 0.0
    model = Linear()
    model.extra = nn.Linear(1, 1)
    config = toys.with_train(trainable=["extra"])
    with pytest.raises(UsageError, match=r"ToyObjective gives.*train\.trainable \(extra\)"):
        toys.trainer(tmp_path, config, model=model, objectives=[objective]).fit()


def test_a_step_with_nothing_to_count_changes_nothing(toys: Any, tmp_path: Path) -> None:
    trainer = toys.trainer(tmp_path)
    before = [p.tolist() for p in trainer.parameters.values()]
    batch = toys.make_batch([0, 1])
    batch.attention_mask[:] = False
    sums = trainer._step([batch], 0.1)
    assert "loss" not in sums
    assert [p.tolist() for p in trainer.parameters.values()] == before


def test_data_that_ends_early_is_an_error(toys: Any, tmp_path: Path) -> None:
    loader = lambda start: iter([next(toys.loader()(start))])  # noqa: E731
    with pytest.raises(UsageError, match="the data ended at step 1"):
        toys.trainer(tmp_path, loader=loader).fit()


def test_only_modules_with_trained_weights_are_in_training_mode(toys: Any, tmp_path: Path) -> None:
    class Sleepy(Callback):
        """Leaves the model in evaluation mode, as drawing samples may."""

        def on_sample(self, trainer: Training, step: int) -> None:
            trainer.model.eval()

    model = toys.model()
    config = toys.with_train(sample_every=12)
    toys.trainer(tmp_path, config, model=model, callbacks=[Sleepy()]).fit()
    training = {name for name, module in model.named_modules() if module.training}
    assert training == {"", "body", "body.0", "body.1", "body.2", "head"}


def test_callbacks_receive_every_event_in_order(toys: Any, tmp_path: Path) -> None:
    events: list[tuple[str, int | None]] = []

    class Listener(Callback):
        def on_start(self, trainer: Training) -> None:
            events.append(("start", None))

        def on_log(self, trainer: Training, step: int, values: Mapping[str, float]) -> None:
            events.append(("log", step))

        def on_checkpoint(self, trainer: Training, step: int, folder: Path) -> None:
            assert folder.name == f"step-{step:08d}"
            events.append(("checkpoint", step))

        def on_sample(self, trainer: Training, step: int) -> None:
            events.append(("sample", step))

        def on_end(self, trainer: Training) -> None:
            events.append(("end", None))

    config = toys.with_train(steps=6, log_every=3, checkpoint_every=4, sample_every=5)
    toys.trainer(tmp_path, config, callbacks=[Listener(), Callback()]).fit()
    assert events == [
        ("start", None),
        ("log", 3),
        ("checkpoint", 4),
        ("sample", 5),
        ("log", 6),
        ("checkpoint", 6),
        ("sample", 6),
        ("end", None),
    ]


def test_the_run_folder_describes_the_whole_run(toys: Any, tmp_path: Path) -> None:
    toys.trainer(tmp_path).fit()
    assert from_dict(RunConfig, read_yaml(tmp_path / "config.yaml")) == toys.config
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoints", "env.json", "latest"}
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert set(row) == {
        "step",
        "loss",
        "ToyObjective/loss",
        "ToyObjective/rows",
        "lr",
        "grad_norm",
        "samples_per_second",
        "tokens_per_second",
        "busy_cores",
        "tflops",
        "samples_seen",
        "nonfinite_steps",
        "memory_mb",
        "data_wait",
    }
    assert row["step"] == 5
    assert row["samples_seen"] == 20
    assert 0 <= row["data_wait"] <= 1


def test_averages_follow_the_weights_of_every_step(toys: Any, tmp_path: Path) -> None:
    expected = toys.model().head.weight.detach().clone()

    class Follow(Callback):
        def on_log(self, trainer: Training, step: int, values: Mapping[str, float]) -> None:
            decay = min(0.3, step / (step + 9))
            expected.lerp_(trainer.parameters["head.weight"].detach(), 1 - decay)

    trainer = toys.trainer(
        tmp_path, toys.with_train(log_every=1, ema_decay=0.3), callbacks=[Follow()]
    )
    trainer.fit()
    torch.testing.assert_close(trainer.ema.averages["head.weight"], expected)


def test_a_stored_step_has_its_averaged_weights(toys: Any, tmp_path: Path) -> None:
    averages: dict[int, torch.Tensor] = {}

    class Keep(Callback):
        def on_log(self, trainer: Training, step: int, values: Mapping[str, float]) -> None:
            averages[step] = trainer.ema.averages["head.weight"].clone()

    config = toys.with_train(log_every=4, checkpoint_every=2, keep_every=4, ema_decay=0.3)
    toys.trainer(tmp_path, config, callbacks=[Keep()]).fit()
    trainer = toys.trainer(tmp_path, config)
    fresh = trainer.model.head.weight.detach().clone()
    for step in (4, 12, 8):
        with trainer.stored(step):
            assert torch.equal(trainer.model.head.weight, averages[step])
    assert not torch.equal(averages[4], averages[8])
    assert not torch.equal(trainer.model.head.weight, fresh)  # the weights of the last one stay
    with pytest.raises(UsageError, match="step-00000006 is not whole"), trainer.stored(6):
        pass


def test_operations_are_counted_without_a_change_of_the_weights(toys: Any, tmp_path: Path) -> None:
    """The stem is frozen and gets no gradient: one pass. The body's input needs none: two."""
    trainer = toys.trainer(tmp_path)
    before = {name: one.detach().clone() for name, one in trainer.parameters.items()}
    stem, body, head = 2 * 4 * 4, 2 * 4 * 8, 2 * 8 * 4
    assert trainer.flops_per_sample() == stem + 2 * body + 3 * head
    assert all(torch.equal(one, before[name]) for name, one in trainer.parameters.items())


def test_the_toy_learns(toys: Any, tmp_path: Path) -> None:
    config = toys.with_train(steps=150, log_every=15, checkpoint_every=1000)
    toys.trainer(tmp_path, config, model=Linear()).fit()
    found = losses(tmp_path)
    assert found[-1] < 0.5 * found[0]


def test_frozen_weights_of_16_bits_have_no_copy_in_fp32_and_give_the_same_losses(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_run: ReadRun
) -> None:
    config, dtypes = toys.with_train(precision="bf16"), []

    class Look(Callback):
        def on_end(self, trainer: Training) -> None:
            stem = trainer.model.get_submodule("stem.0").weight
            dtypes.append(stem.dtype)
            assert trainer.model(torch.randn(3, 4)).isfinite().all()  # samples are drawn here

    for name in ("halved", "plain"):
        model = toys.model()
        for weight in model.stem.parameters():
            weight.data = weight.data.bfloat16().float()
        toys.trainer(tmp_path / name, config, model=model, callbacks=[Look()]).fit()
        monkeypatch.setattr("blip3o.train.trainer.halve_frozen", lambda *_: False)
    assert dtypes == [torch.bfloat16, torch.float32]
    assert read_run(tmp_path / "halved") == read_run(tmp_path / "plain")


class Blocks(nn.Module):
    """Two equal blocks with dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.2)) for _ in range(2)
        )
        self.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for block in self.body:
            values = values + block(values)
        return self.head(values)


def test_checkpointing_is_chosen_by_memory_and_changes_nothing(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_run: ReadRun
) -> None:
    asked: list[tuple[int, int]] = []

    def needs(activations: int, more: int, device: torch.device) -> bool:
        asked.append((activations, more))
        return len(asked) == 1

    monkeypatch.setattr("blip3o.train.trainer.needs_checkpointing", needs)
    for name in ("checkpointed", "plain"):
        model = Blocks()
        trainer = toys.trainer(tmp_path / name, model=model)
        trainer.fit()
        is_checkpointed = ["forward" in vars(block) for block in model.body]
        assert is_checkpointed == [name == "checkpointed"] * 2
    assert read_run(tmp_path / "checkpointed") == read_run(tmp_path / "plain")
    trained = sum(one.nbytes for one in trainer.parameters.values())
    activations, more = asked[0]
    assert activations > 4 * 4 * 4 * 2  # at least the inputs of both blocks, 4 rows of 4 numbers
    assert more == 3 * trained


def test_fp16_is_refused(toys: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use bf16 or fp32"):
        toys.trainer(tmp_path, toys.with_train(precision="fp16"))


def test_the_modules_that_a_model_names_are_compiled(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    config = toys.with_train(compile=True)
    toys.trainer(tmp_path, config)
    assert "names no compile_targets" in capsys.readouterr().err
    model = toys.model()
    monkeypatch.setattr(type(model), "compile_targets", lambda m: [m.head], raising=False)
    toys.trainer(tmp_path, config, model=model)
    assert compiled == [model.head]


@pytest.mark.compile
def test_compiled_blocks_learn_like_plain_ones_under_the_same_names(
    toys: Any, tmp_path: Path
) -> None:
    found = {}
    for compiled in (False, True):
        model = Linear()
        model.__dict__["compile_targets"] = lambda model=model: [model.body]
        config = toys.with_train(compile=compiled)
        trainer = toys.trainer(tmp_path / str(compiled), config, model=model)
        trainer.fit()
        found[compiled] = {name: p.detach() for name, p in trainer.parameters.items()}
    assert found[True].keys() == found[False].keys()
    for name, expected in found[False].items():
        torch.testing.assert_close(found[True][name], expected, rtol=1e-4, atol=1e-5)
