"""Starts an evaluation from names and settings, as the command line gives them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from blip3o.core.choices import PrecisionName
from blip3o.core.config import override
from blip3o.core.files import check_folder
from blip3o.core.shard import WHOLE, Shard
from blip3o.eval import BENCHMARKS
from blip3o.eval.benchmark import Benchmark
from blip3o.eval.models import PipelineModel, RemoteModel
from blip3o.eval.report.results import Results
from blip3o.eval.stages import evaluate, score_folder
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.remote.client import ChatClient
from blip3o.remote.http import ServerSettings
from blip3o.remote.images import ImageClient


def benchmark_of(name: str, overrides: Sequence[str] = ()) -> Benchmark:
    """Returns a benchmark with changed settings.

    Raises:
        UsageError: for an unknown benchmark or setting.
    """
    return override(BENCHMARKS.get(name)(), list(overrides))


def run_benchmark(
    name: str,
    model: str,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    shard: Shard = WHOLE,
    revision: str | None = None,
    model_overrides: Sequence[str] = (),
    device: str = "auto",
    dtype: PrecisionName = "auto",
    quantize: str | None = None,
    offload: str = "none",
) -> Results | None:
    """Scores a model, and returns the results.

    Args:
        name: an entry of `BENCHMARKS`.
        model: a bundled model's name, a model folder or a hub id.
        out: folder of the evaluation; the same call again resumes.
        overrides: `path=value` changes of the benchmark's settings.
        shard: the part of the work that this process does.
        revision: branch, tag or commit of a hub model.
        model_overrides: `path=value` changes of the model's settings.
        device: device of the model.
        dtype: precision of the weights.
        quantize: as for `Blip3oPipeline.from_pretrained`.
        offload: as for `Blip3oPipeline.from_pretrained`.

    Returns:
        The results; None if other shards are not done yet.

    Raises:
        UsageError: for an unknown benchmark, setting or model, or a folder that cannot be written.
    """
    benchmark = benchmark_of(name, overrides)
    check_folder(out)
    pipe = Blip3oPipeline.from_pretrained(
        model,
        revision=revision,
        overrides=model_overrides,
        device=device,
        dtype=dtype,
        quantize=quantize,
        offload=offload,
    )
    facts = {
        "revision": revision,
        "model_overrides": list(model_overrides),
        "quantize": quantize,
    }
    return evaluate(name, benchmark, PipelineModel(pipe, model, benchmark, facts), out, shard)


def run_remote(
    name: str,
    url: str,
    model: str,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    shard: Shard = WHOLE,
) -> Results | None:
    """Scores the model of an OpenAI-compatible server, and returns the results.

    Args:
        name: an entry of `BENCHMARKS`.
        url: address of the server, "http://127.0.0.1:8000/v1".
        model: name of the model there.
        out: folder of the evaluation; the same call again resumes.
        overrides: `path=value` changes of the benchmark's settings.
        shard: the part of the work that this process does.

    Returns:
        The results; None if other shards are not done yet.

    Raises:
        UsageError: for an unknown benchmark or setting, or a server that cannot be reached.
    """
    benchmark = benchmark_of(name, overrides)
    server = ServerSettings(model=model, url=url)
    remote = RemoteModel(ImageClient(server), ChatClient(server), benchmark)
    return evaluate(name, benchmark, remote, out, shard)


def score_images(
    name: str,
    folder: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    facts: Mapping[str, str],
    allow_missing: bool = False,
    shard: Shard = WHOLE,
) -> Results | None:
    """Scores images that any program has drawn, and returns the results.

    Args:
        name: an entry of `BENCHMARKS`.
        folder: an evaluation of this package, or a folder or file in the benchmark's own layout.
        out: folder for plan, verdicts and results; the same call again resumes.
        overrides: `path=value` changes of the benchmark's settings.
        facts: facts about the images: model, seed and settings of the sampler. Those of an
            evaluation come from its files.
        allow_missing: counts missing and broken samples as failures instead of refusing them.
        shard: the part of the samples that this process judges.

    Returns:
        The results; None if other shards are not done yet.

    Raises:
        UsageError: for an unknown benchmark or setting, or a folder that cannot be scored.
    """
    benchmark = benchmark_of(name, overrides)
    return score_folder(
        name, benchmark, folder, out, facts=facts, allow_missing=allow_missing, shard=shard
    )
