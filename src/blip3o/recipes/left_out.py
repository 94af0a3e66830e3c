"""Says how many records of a run's data cannot be used, before it starts and when it is done."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from blip3o.core.distributed import exchange, is_main
from blip3o.core.log import say
from blip3o.data.cache import FeatureCache
from blip3o.data.loader import Loader
from blip3o.data.mixture import DataConfig
from blip3o.data.samples import BEFORE_TRAINING, BadSample, append_bad
from blip3o.data.tasks import PICTURES

_LOOKED_AT = 2000
"""Sources of no more records are looked through before the first step."""
_SECONDS = 20.0
"""What that may take."""


def leave_out(
    loader: Loader, config: DataConfig, cache: FeatureCache | None, quarantine: Path
) -> None:
    """Finds records that cannot be used, says how many, and lists them in the quarantine.

    Small sources are looked through; of large ones the feature cache knows some.

    Args:
        loader: the run's; it leaves them out without counting them again and again.
        config: what the run learns from.
        cache: features of its pictures, if any.
        quarantine: the list.
    """
    found: list[BadSample] = []
    if is_main():
        found = loader.find_bad(_LOOKED_AT, _SECONDS)
        seen = {(one.source, one.position) for one in found}
        found += [
            one
            for one in ([] if cache is None else _without_features(loader, config, cache))
            if (one.source, one.position) not in seen
        ]
        listed = {(one.get("source"), one.get("position")) for one in _read(quarantine)}
        append_bad(quarantine, [o for o in found if (o.source, o.position) not in listed])
        _say(config, loader, [(one.source, one.position) for one in found], quarantine)
    found = exchange(found)[0]
    loader.bear(found)


def tell_left_out(loader: Loader, config: DataConfig, samples_seen: int, quarantine: Path) -> None:
    """Says how many records of a run's sources were left out.

    Args:
        loader: the run's.
        config: what it learned from.
        samples_seen: how many samples it learned from.
        quarantine: the list of those that were left out.
    """
    weights = sum(entry.weight for entry in config.mixture)
    seen = {
        source.name: samples_seen * entry.weight / weights
        for entry, source in zip(config.mixture, loader.sources, strict=True)
    }
    _say(
        config,
        loader,
        [
            (str(one.get("source")), one.get("position", one.get("key")))
            for one in _read(quarantine)
        ],
        quarantine,
        seen,
    )


def _without_features(
    loader: Loader, config: DataConfig, cache: FeatureCache
) -> Iterable[BadSample]:
    for entry, source in zip(config.mixture, loader.sources, strict=True):
        for role in PICTURES[entry.task]:
            for position, note in cache.left_out(source, role).items():
                yield BadSample(
                    source=source.name,
                    key=str(note.get("key", "?")),
                    index=BEFORE_TRAINING,
                    reason=str(note.get("reason", "the picture cannot be read")),
                    position=position,
                )


def _say(
    config: DataConfig,
    loader: Loader,
    bad: Iterable[tuple[str, object]],
    quarantine: Path,
    seen: Mapping[str, float] | None = None,
) -> None:
    distinct = set(bad)
    sources = {source.name: source for source in loader.sources}
    has_pictures = {e.source.name for e in config.mixture if PICTURES[e.task]}
    for name, source in sources.items():
        count, total = sum(one == name for one, _ in distinct), len(source)
        if not count:
            continue
        what = "images" if name in has_pictures else "records"
        if seen is None or seen[name] >= total:
            said = f"{max(0, total - count)} of {total} {what} of {name} used; {count} left out"
        else:  # the rest has not been looked at yet
            said = f"{count} of {total} {what} of {name} were left out so far"
        say(f"{said}, see {quarantine}")


def _read(quarantine: Path) -> list[dict[str, object]]:
    try:
        lines = quarantine.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            one = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        if isinstance(one, dict):
            found.append(one)
    return found
