"""L5: benchmarks, which score the outputs of a model. Each has one file and one line in a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from blip3o.core.describe import describe_config, describe_functions
from blip3o.core.registry import Registry

if TYPE_CHECKING:
    from blip3o.eval.benchmark import Benchmark

BENCHMARKS: "Registry[type[Benchmark]]" = Registry(
    "benchmark",
    {
        "scenes": ".scenes:ScenesBenchmark",
        "geneval": ".geneval.benchmark:GenEvalBenchmark",
        "geneval2": ".geneval2:GenEval2Benchmark",
        "dpg": ".dpg.benchmark:DPGBenchmark",
        "t2i_compbench": ".t2i_compbench:T2ICompBenchmark",
        "wise": ".wise.benchmark:WiseBenchmark",
        "wise_verified": ".wise.benchmark:WiseVerifiedBenchmark",
        "imgedit": ".imgedit:ImgEditBenchmark",
        "imgedit_uge": ".imgedit:ImgEditUgeBenchmark",
        "gedit": ".gedit.benchmark:GEditBenchmark",
        "reconstruction": ".reconstruction:ReconstructionBenchmark",
        "fid": ".fid:FidBenchmark",
        "clip_score": ".clip_score:ClipScoreBenchmark",
        "understanding": ".understanding:UnderstandingBenchmark",
    },
    package=__name__,
)


def describe_benchmarks() -> str:
    """Returns one line per benchmark: its name and its subject."""
    return describe_functions(BENCHMARKS, Path(__file__).parent)


def describe_benchmark(name: str) -> str:
    """Returns the settings of a benchmark with their defaults and meanings.

    Raises:
        UsageError: if the name is unknown.
    """
    return describe_config(BENCHMARKS.get(name)())
