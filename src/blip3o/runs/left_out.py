"""Says how many records of a run's data cannot be used, before it starts and when it is done."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blip3o.core.distributed import exchange, is_main
from blip3o.core.log import say
from blip3o.data.cache import FeatureCache
from blip3o.data.loader import Loader
from blip3o.data.mixture import DataConfig
from blip3o.data.samples import BEFORE_TRAINING, BadSample, append_bad
from blip3o.data.tasks import IMAGES

_LOOKED_AT = 2000
"""Sources of no more records are looked through before the first step."""
_SECONDS = 20.0
"""How long that may take."""

_Name = tuple[str, str]
"""The name of a source, and the key of a record, or the reason why its key is not known."""


class LeftOut:
    """Records of a run that cannot be used: found, said, and listed in the quarantine.

    Small sources are looked through before the first step; of large ones the feature cache knows
    some. All processes of a run make one together.

    Args:
        loader: the run's; it leaves them out without counting them again and again.
        config: what the run learns from.
        cache: features of its images, if any.
        quarantine: the list.
    """

    def __init__(
        self, loader: Loader, config: DataConfig, cache: FeatureCache | None, quarantine: Path
    ) -> None:
        self._loader = loader
        self._config = config
        self._quarantine = quarantine
        self._looked_at = {one.name for one in loader.sources if len(one) <= _LOOKED_AT}
        self._earlier = self._listed()
        found = exchange(self._find(cache) if is_main() else [])[0]
        loader.bear(found)
        self._found = {_name(dataclasses.asdict(one)): one for one in found}
        if is_main():
            new = [one for name, one in self._found.items() if name not in self._earlier]
            append_bad(quarantine, new)
            self._say(self._found)

    def tell(self, samples_seen: int) -> None:
        """Says how many records were left out in the end.

        Args:
            samples_seen: how many samples the run learned from.
        """
        weights = sum(entry.weight for entry in self._config.mixture)
        seen = {
            source.name: samples_seen * entry.weight / weights
            for entry, source in zip(self._config.mixture, self._loader.sources, strict=True)
        }
        # This start has looked through some sources: what was found bad there before may be mended.
        mended = {name for name in self._earlier if name[0] in self._looked_at}
        self._say({*self._found, *(set(self._listed()) - mended)}, seen)

    def _say(self, names: Iterable[_Name], seen: Mapping[str, float] | None = None) -> None:
        names = list(names)
        has_images = {e.source.name for e in self._config.mixture if IMAGES[e.task]}
        for name, total in {one.name: len(one) for one in self._loader.sources}.items():
            count = sum(source == name for source, _ in names)
            what = "images" if name in has_images else "records"
            if count and (seen is None or name in self._looked_at or seen[name] >= total):
                used = max(0, total - count)
                say(
                    f"{used} of {total} {what} of {name} used; {count} left out, "
                    f"see {self._quarantine}"
                )
            elif count:  # the rest has not come up yet
                say(f"{count} of {total} {what} of {name} left out so far, see {self._quarantine}")

    def _find(self, cache: FeatureCache | None) -> list[BadSample]:
        found = self._loader.find_bad(_LOOKED_AT, _SECONDS)
        places = {(one.source, one.position) for one in found}
        more = [] if cache is None else self._without_features(cache)
        return found + [one for one in more if (one.source, one.position) not in places]

    def _without_features(self, cache: FeatureCache) -> Iterator[BadSample]:
        for entry, source in zip(self._config.mixture, self._loader.sources, strict=True):
            for role in IMAGES[entry.task]:
                for position, note in cache.left_out(source, role).items():
                    yield BadSample(
                        source=source.name,
                        key=str(note.get("key", "?")),
                        index=BEFORE_TRAINING,
                        reason=str(note.get("reason", "the image cannot be read")),
                        position=position,
                    )

    def _listed(self) -> dict[_Name, None]:
        """Returns what the quarantine lists, in its order."""
        try:
            lines = self._quarantine.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return {}
        found: dict[_Name, None] = {}
        for line in lines:
            try:
                found[_name(json.loads(line))] = None
            except (ValueError, KeyError, TypeError):  # cut short by a kill
                continue
        return found


def _name(bad: Mapping[str, Any]) -> _Name:
    return str(bad["source"]), str(bad["reason"] if bad["key"] == "?" else bad["key"])
