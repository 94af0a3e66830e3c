"""L5: benchmarks: prompts to outputs to numbers. One file and one table line each."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blip3o import __version__
from blip3o.core.config import override, to_dict
from blip3o.core.device import PrecisionName
from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_file, write_atomic
from blip3o.core.lock import locked
from blip3o.core.registry import Registry
from blip3o.generate.pipeline import Blip3oPipeline

BENCHMARKS = Registry("benchmark", {"scenes": ".scenes:ScenesBenchmark"}, package=__name__)


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
) -> dict[str, Any]:
    """Scores a model and writes `results.json`, `samples.jsonl` and sheets of images.

    Nothing is written before all is done: until then a folder holds what an older run left, and
    afterwards nothing of it.

    Args:
        name: a benchmark out of `BENCHMARKS`.
        model: a bundled model's name, a model folder or a hub id.
        out: folder to write to; created if missing.
        overrides: `path=value` changes of the benchmark's settings.
        revision: branch, tag or commit of a hub id.
        model_overrides: `path=value` changes of the model's settings.
        device: where the model runs.
        dtype: type of its weights.
        quantize: as for `Blip3oPipeline.from_pretrained`.
        offload: likewise.

    Returns:
        What was written to `results.json`.

    Raises:
        UsageError: for an unknown benchmark, setting or model, or a folder that cannot be written.
    """
    config = override(BENCHMARKS.get(name)(), list(overrides))
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
            scores = config.run(pipe, scratch, lambda row: samples.write(json.dumps(row) + "\n"))
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
    """Yields a folder inside `out`, which is created if missing, for sheets that are not whole.

    Of two evaluations into one folder the second one is refused.
    """
    scratch = out / ".sheets.part"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error}") from error
    with locked(out / ".lock", f"evaluates into {out}: wait for it, or use another --out"):
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_sheets(out: Path) -> None:
    """Removes the sheets of the results in a folder: the next ones may have none in their place."""
    try:
        older = json.loads((out / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or cut short
        return
    for name in older.get("sheets", []):
        (out / Path(name).name).unlink(missing_ok=True)
