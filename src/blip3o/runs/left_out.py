"""Reports how many records of a run's data are unusable, before the first step and at the end."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from blip3o.core.distributed import exchange, is_main
from blip3o.core.log import say
from blip3o.data.cache import FeatureCache
from blip3o.data.loader import Loader
from blip3o.data.mixture import DataConfig
from blip3o.data.samples import BEFORE_TRAINING, BadSample, append_bad
from blip3o.data.tasks import IMAGES

_MOST_CHECKED = 2000
"""Sources of at most this many records are checked before the first step."""
_SECONDS = 20.0
"""Time limit of this check."""

_Name: TypeAlias = tuple[str, str]
"""Source and key of a record; if the key is unknown, the reason why the record is unusable."""


class LeftOut:
    """Finds unusable records of a run, reports their number and lists them in the quarantine.

    Small sources are checked before the first step. For large ones, the feature cache knows the
    images that could not be read. All processes of a run must construct it together.

    Args:
        loader: the run's loader; from now on it skips these records without counting them.
        config: the run's data.
        cache: cached features of the run's images, if any.
        quarantine: the file that lists unusable records.
    """

    def __init__(
        self, loader: Loader, config: DataConfig, cache: FeatureCache | None, quarantine: Path
    ) -> None:
        self._loader = loader
        self._config = config
        self._quarantine = quarantine
        self._checked = {one.name for one in loader.sources if len(one) <= _MOST_CHECKED}
        self._earlier = self._listed()
        found = exchange(self._find(cache) if is_main() else [])[0]
        loader.stop_counting(found)
        self._found = {_name(dataclasses.asdict(one)): one for one in found}
        if is_main():
            new = [one for name, one in self._found.items() if name not in self._earlier]
            append_bad(quarantine, new)
            self._report(self._found)

    def report_end(self, samples_seen: int) -> None:
        """Reports the records left out by the end of a run that has seen `samples_seen` samples."""
        weights = sum(entry.weight for entry in self._config.mixture)
        seen = {
            source.name: samples_seen * entry.weight / weights
            for entry, source in zip(self._config.mixture, self._loader.sources, strict=True)
        }
        # This start checked some sources. Records listed for them earlier may be repaired now.
        repaired = {name for name in self._earlier if name[0] in self._checked}
        self._report({*self._found, *(set(self._listed()) - repaired)}, seen)

    def _report(self, names: Iterable[_Name], seen: Mapping[str, float] | None = None) -> None:
        names = list(names)
        has_images = {e.source.name for e in self._config.mixture if IMAGES[e.task]}
        for name, total in {one.name: len(one) for one in self._loader.sources}.items():
            count = sum(source == name for source, _ in names)
            unit = "images" if name in has_images else "records"
            if count and (seen is None or name in self._checked or seen[name] >= total):
                used = max(0, total - count)
                say(
                    f"{used} of {total} {unit} of {name} used; {count} left out, "
                    f"see {self._quarantine}"
                )
            elif count:  # the run has not reached every record
                say(f"{count} of {total} {unit} of {name} left out so far, see {self._quarantine}")

    def _find(self, cache: FeatureCache | None) -> list[BadSample]:
        found = self._loader.find_bad(_MOST_CHECKED, _SECONDS)
        places = {(one.source, one.position) for one in found}
        more = [] if cache is None else self._without_features(cache)
        return found + [one for one in more if (one.source, one.position) not in places]

    def _without_features(self, cache: FeatureCache) -> Iterator[BadSample]:
        for entry, source in zip(self._config.mixture, self._loader.sources, strict=True):
            for role in IMAGES[entry.task]:
                for position, note in cache.left_out(source.name, role).items():
                    yield BadSample(
                        source=source.name,
                        key=note["key"],
                        index=BEFORE_TRAINING,
                        reason=note["reason"],
                        position=position,
                    )

    def _listed(self) -> dict[_Name, None]:
        """Returns the records in the quarantine, in its order."""
        try:
            lines = self._quarantine.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return {}
        found: dict[_Name, None] = {}
        for line in lines:
            try:
                found[_name(json.loads(line))] = None
            except (ValueError, KeyError, TypeError):  # a line that a kill cut short
                continue
        return found


def _name(bad: Mapping[str, object]) -> _Name:
    return str(bad["source"]), str(bad["reason"] if bad["key"] == "?" else bad["key"])
