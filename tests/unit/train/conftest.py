"""A toy model, objective and data, small enough to train hundreds of steps a second."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from blip3o.core.config import evolve
from blip3o.core.rng import sample_normal
from blip3o.core.types import Batch, LossOutput
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.train.callbacks import Callback, Training
from blip3o.train.config import OptimizerConfig, RunConfig, TrainConfig
from blip3o.train.trainer import Trainer

WIDTH = 4


class ToyModel(nn.Module):
    """A frozen stem, a trained body with dropout and running statistics, a trained head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.head = nn.Linear(8, WIDTH)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.stem(values))))


class ToyObjective(nn.Module):
    """Mean square error to a noisy target; each row is weighted by the length of its mask."""

    needs_pixels, regions, samples = False, None, None

    def __init__(self, tasks: tuple[str, ...] = ("text",), weight: float = 1.0) -> None:
        super().__init__()
        self.tasks = tasks
        self.weight = weight
        self.shift = nn.Parameter(torch.zeros(WIDTH))
        self.poison: set[int] = set()

    def count(self, batch: Batch) -> float:
        return float(batch.attention_mask.sum())

    def forward(self, model: nn.Module, batch: Batch, seed: int) -> LossOutput:
        noise = sample_normal((WIDTH,), seed, "noise", batch.epochs, batch.indices)
        values = batch.input_ids.float() / 10
        error = (model(values) + self.shift - values.cos() - 0.1 * noise).square().mean(-1)
        loss_sum = (error * batch.attention_mask.sum(-1)).sum()
        if self.poison & set(batch.indices.tolist()):
            loss_sum = loss_sum * float("nan")
        count = self.count(batch)
        return LossOutput(
            loss_sum=loss_sum, count=count, metrics={"rows": (error.detach().sum(), len(batch))}
        )


def make_batch(indices: list[int], task: str = "text") -> Batch:
    rows = [torch.randint(-9, 9, (WIDTH,), generator=_generator(index)) for index in indices]
    lengths = torch.tensor([1 + index % WIDTH for index in indices])
    return Batch(
        task=task,
        indices=torch.tensor(indices),
        epochs=torch.zeros(len(indices), dtype=torch.int64),
        input_ids=torch.stack(rows),
        attention_mask=torch.arange(WIDTH) < lengths[:, None],
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ToyLoader:
    """Step t has `batch_size` samples from `batch_size * t` on, in batches of at most `micro`."""

    def __init__(self, batch_size: int = 4, micro: int = 4) -> None:
        self.batch_size = batch_size
        self.micro = micro

    def __call__(self, start_step: int) -> Iterator[list[Batch]]:
        step = start_step
        while True:
            first = self.batch_size * step
            indices = list(range(first, first + self.batch_size))
            yield [
                make_batch(indices[start : start + self.micro])
                for start in range(0, self.batch_size, self.micro)
            ]
            step += 1


class StopAfter(Callback):
    """A callback that sends a signal to its own process once a step is logged."""

    def __init__(self, step: int, number: int) -> None:
        self.step = step
        self.number = number

    def on_log(self, trainer: Training, step: int, values: Mapping[str, float]) -> None:
        if step >= self.step:
            os.kill(os.getpid(), self.number)


@dataclasses.dataclass
class Toys:
    """Parts for runs, and a function that builds a trainer from them."""

    config: RunConfig
    model: type[ToyModel] = ToyModel
    objective: type[ToyObjective] = ToyObjective
    loader: type[ToyLoader] = ToyLoader
    stop_after: type[StopAfter] = StopAfter
    make_batch: Callable[..., Batch] = make_batch

    def with_train(self, **changes: Any) -> RunConfig:
        return evolve(self.config, {f"train.{key}": value for key, value in changes.items()})

    def trainer(self, run_dir: Path, config: RunConfig | None = None, **parts: Any) -> Trainer:
        return Trainer(
            run_dir,
            config or self.config,
            parts.get("model") or self.model(),
            parts.get("objectives") or [self.objective()],
            parts.get("loader") or self.loader(),
            parts.get("callbacks", ()),
        )


@pytest.fixture
def toys() -> Toys:
    entry = MixtureEntry(source=JsonlConfig(path="toy.jsonl", name="toy"), task="text")
    return Toys(
        RunConfig(
            model=UnifiedModelConfig.tiny(),
            data=DataConfig(mixture=(entry,)),
            objectives=(),
            train=TrainConfig(
                steps=12,
                global_batch_size=4,
                micro_batch_size=4,
                trainable=("body", "head"),
                optimizer=OptimizerConfig(lr=0.05, warmup_steps=3),
                log_every=5,
                checkpoint_every=4,
                sample_every=0,
                precision="fp32",
                device="cpu",
            ),
        )
    )


@pytest.fixture
def read_run() -> Callable[[Path], dict[str, Any]]:
    """Returns a function that reads all stored tensors and metrics of a run, except timings."""

    def read(run_dir: Path) -> dict[str, Any]:
        folder = run_dir / "checkpoints" / (run_dir / "latest").read_text().strip()
        content: dict[str, Any] = {"folder": folder.name}
        for file in sorted(folder.glob("*.safetensors")):
            content[file.name] = _plain(load_file(file))
        state = json.loads((folder / "state.json").read_text())
        content["state"] = {key: value for key, value in state.items() if key != "config"}
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        timed = (
            "samples_per_second",
            "tokens_per_second",
            "busy_cores",
            "tflops",
            "data_wait",
            "memory_mb",
        )
        content["metrics"] = [{k: v for k, v in row.items() if k not in timed} for row in rows]
        return content

    return read


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in tensors.items()}
