"""Measures how fast captions are compared with the prompts of benchmarks.

The captions are those of procedural scenes, in many wordings, one in each record of a list. The
time includes reading the list and starting the processes.
"""

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import Case, Options, main

from blip3o.core.rng import numpy_rng
from blip3o.curate.decontaminate import decontaminate
from blip3o.data.scenes.captions import caption_texts
from blip3o.data.scenes.scene import sample_scene

SEED = 0


def captions() -> Iterator[str]:
    """Yields captions without end."""
    for index in itertools.count():
        rng = numpy_rng(SEED, "benchmark captions", index)
        yield from caption_texts(sample_scene(SEED, index), rng)


def compare(options: Options) -> Iterator[Case]:
    """A list of captions, in one process and in two."""
    texts = list(itertools.islice(captions(), options.pick(200_000, 50)))
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "captions.jsonl"
        file.write_text(
            "".join(json.dumps({"caption": text}) + "\n" for text in texts), encoding="utf-8"
        )
        yield Case(
            unit="caption",
            work=len(texts),
            variants={
                f"{jobs}_processes": lambda jobs=jobs: decontaminate([str(file)], jobs=jobs)
                for jobs in (1, 2)
            },
            difference=lambda one, other: float(one != other),
            most_rounds=3,
            facts={"words_per_caption": sum(len(text.split()) for text in texts) / len(texts)},
        )


if __name__ == "__main__":
    main(__doc__, {"compare": compare})
