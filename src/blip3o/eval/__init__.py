"""L5: benchmarks: prompts to outputs to numbers. One file and one table line each."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip3o import __version__
from blip3o.core.config import override, to_dict
from blip3o.core.device import PrecisionName
from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_file, write_atomic
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
    """Scores a model and writes `results.json` and `samples.jsonl`.

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
    pipe = Blip3oPipeline.from_pretrained(
        model,
        revision=revision,
        overrides=model_overrides,
        device=device,
        dtype=dtype,
        quantize=quantize,
        offload=offload,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error}") from error
    # Whole or not at all: beside older results no verdicts may lie that they are not of.
    with (
        atomic_file(out / "samples.jsonl") as scratch,
        scratch.open("w", encoding="utf-8") as samples,
    ):
        scores = config.run(pipe, out, lambda row: samples.write(json.dumps(row) + "\n"))
    results = {
        "benchmark": name,
        **scores,
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
