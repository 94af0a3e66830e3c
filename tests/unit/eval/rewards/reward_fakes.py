"""A scorer of red squares that dies, fails or hangs if the metadata ask for it.

The process of the scorer imports this module by its name.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Sample, Verdict
from blip3o.eval.rewards.schemas import Strict


class FakeMetadata(Strict):
    does: Literal["judge", "die", "raise", "hang", "nan", "skip", "sleep"] = "judge"


class FakeRewards:
    metadata = FakeMetadata
    settings: Mapping[str, Any] = {}

    def __init__(self, overrides: Sequence[str] = ()) -> None:
        self._overrides = tuple(overrides)

    def item_of(self, metadata: FakeMetadata) -> Item:
        return Item(id="", number=0, data={"does": metadata.does})

    def scorer(self) -> "FakeScorer":
        if "load=refuse" in self._overrides:
            raise UsageError("there are no weights; get some")
        if "load=die" in self._overrides:
            os.kill(os.getpid(), signal.SIGKILL)
        return FakeScorer()


class FakeScorer:
    judge = "red-1"
    batch_size = 4

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        for sample in reversed(samples):
            does = sample.item.data["does"]
            if does == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif does == "hang":
                time.sleep(3600)
            elif does == "sleep":
                time.sleep(0.5)
            elif does == "raise":
                raise RuntimeError("cannot judge this")
            elif does == "skip":
                continue
            assert sample.image is not None
            red = int(np.asarray(sample.image)[0, 0, 0])
            yield Verdict(
                item=sample.item.id,
                number=sample.number,
                sha256=sample.sha256,
                judge=self.judge,
                score=float("nan") if does == "nan" else red / 255,
                data={"red": red},
            )
