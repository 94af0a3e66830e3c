"""L5: benchmarks, which score the outputs of a model. Each has one file and one line in a table."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from blip3o import __version__
from blip3o.core.choices import PrecisionName
from blip3o.core.config import override, to_dict
from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_file, write_atomic
from blip3o.core.lock import locked
from blip3o.core.registry import Registry
from blip3o.generate.pipeline import Blip3oPipeline

BENCHMARKS = Registry(
    "benchmark",
    {
        "clip_score": ".clip_score:ClipScoreBenchmark",
        "fid": ".fid:FidBenchmark",
        "reconstruction": ".reconstruction:ReconstructionBenchmark",
        "scenes": ".scenes:ScenesBenchmark",
    },
    package=__name__,
)

WriteRow = Callable[[Mapping[str, object]], object]
"""Writes the row of one sample to `samples.jsonl`."""


class Benchmark(Protocol):
    """A dataclass of settings that can score a model; the type of the entries of `BENCHMARKS`."""

    def run(self, pipe: Blip3oPipeline, out: Path, write: WriteRow) -> dict[str, object]:
        """Returns the scores.

        Args:
            pipe: the model.
            out: folder for sheets of images.
            write: takes the row of each sample.
        """
        ...


def run_benchmark(
    name: str,
    model: str,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    revision: str | None = None,
    model_overrides: Sequence[str] = (),
    device: str = "auto",
    dtype: PrecisionName = "auto",
    quantize: str | None = None,
    offload: str = "none",
) -> dict[str, object]:
    """Scores a model and writes `results.json`, `samples.jsonl` and sheets of images.

    The files of an earlier run stay in the folder until all results are ready; then they are
    replaced.

    Args:
        name: an entry of `BENCHMARKS`.
        model: a bundled model's name, a model folder or a hub id.
        out: folder to write to; created if missing.
        overrides: `path=value` changes of the benchmark's settings.
        revision: branch, tag or commit of a hub model.
        model_overrides: `path=value` changes of the model's settings.
        device: device of the model.
        dtype: precision of the weights.
        quantize: as for `Blip3oPipeline.from_pretrained`.
        offload: as for `Blip3oPipeline.from_pretrained`.

    Returns:
        The content of `results.json`.

    Raises:
        UsageError: for an unknown benchmark, setting or model, or a folder that cannot be written.
    """
    config = override(BENCHMARKS.get(name)(), list(overrides))
    benchmark: Benchmark = config
    with _scratch_folder(out) as scratch:
        pipe = Blip3oPipeline.from_pretrained(
            model,
            revision=revision,
            overrides=model_overrides,
            device=device,
            dtype=dtype,
            quantize=quantize,
            offload=offload,
        )
        with (
            atomic_file(out / "samples.jsonl") as part,
            part.open("w", encoding="utf-8") as samples,
        ):
            scores = benchmark.run(pipe, scratch, lambda row: samples.write(json.dumps(row) + "\n"))
        sheets = sorted(sheet.name for sheet in scratch.iterdir())
        _remove_sheets(out)
        for sheet in sheets:
            os.replace(scratch / sheet, out / sheet)
        results = {
            "benchmark": name,
            **scores,
            "sheets": sheets,
            "model": model,
            "revision": revision,
            "version": __version__,
            "settings": {
                **to_dict(config),
                "model_overrides": list(model_overrides),
                "sampling": dataclasses.asdict(pipe.model.config.sampling),
                "dtype": str(pipe.dtype),
                "quantize": quantize,
            },
        }
        write_atomic(out / "results.json", json.dumps(results, indent=2) + "\n")
    return results


@contextmanager
def _scratch_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder for sheets inside `out`, which is created if missing.

    A second evaluation into the same folder is refused while the first one runs.
    """
    scratch = out / ".sheets.part"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error}") from error
    with locked(out / ".lock", f"evaluates into {out}: wait for it, or use another --out"):
        shutil.rmtree(scratch, ignore_errors=True)  # left by a killed run
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_sheets(out: Path) -> None:
    """Removes the sheets of an earlier run; the new run may not write sheets of the same names."""
    try:
        older = json.loads((out / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no earlier results, or an incomplete file
        return
    for name in older.get("sheets", []):
        (out / Path(name).name).unlink(missing_ok=True)
