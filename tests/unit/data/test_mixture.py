"""The order of samples: a pure function of the seed and the sample's number."""

from collections import Counter
from typing import Any

import pytest

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.data.mixture import CYCLE, DataConfig, Mixture, MixtureEntry, Slot
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.sources.webdataset import WebDatasetConfig


def config(*entries: MixtureEntry) -> DataConfig:
    return DataConfig(mixture=entries)


def slots(mixture: Mixture, start: int, count: int) -> list[Slot]:
    return [mixture.slot(index) for index in range(start, start + count)]


def test_every_epoch_is_a_permutation_of_its_own(scenes: WebDatasetConfig) -> None:
    one = Mixture(config(MixtureEntry(source=scenes, task="text")), seed=0)
    records = [one.record(slot) for slot in slots(one, 0, 36)]
    epochs = [records[start : start + 12] for start in (0, 12, 24)]
    orders = [tuple(record.position for record in epoch) for epoch in epochs]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(orders)) == 3
    assert [record.epoch for record in records] == [0] * 12 + [1] * 12 + [2] * 12
    assert [record.index for record in records] == list(range(36))


def test_every_entry_of_a_mixture_covers_its_epochs(mixture: tuple[MixtureEntry, ...]) -> None:
    mixed = Mixture(config(*mixture), seed=3)
    positions: dict[tuple[int, int], list[int]] = {}
    for slot in slots(mixed, 0, 300):
        record = mixed.record(slot)
        positions.setdefault((slot[1], record.epoch), []).append(record.position)
    for (entry, epoch), met in positions.items():
        length = len(mixed.sources[entry])
        assert len(set(met)) == len(met)
        if (entry, epoch + 1) in positions:
            assert sorted(met) == list(range(length))


@pytest.mark.parametrize("start", [1, 50, CYCLE - 1, CYCLE, 3 * CYCLE + 9001])
def test_any_start_continues_with_the_same_samples(
    mixture: tuple[MixtureEntry, ...], start: int
) -> None:
    whole = slots(Mixture(config(*mixture), seed=5), 0, start + 20)[start:]  # reached step by step
    resumed = Mixture(config(*mixture), seed=5)
    assert slots(resumed, start, 20) == whole
    again = Mixture(config(*mixture), seed=5)
    for slot in whole:
        assert again.record(slot) == resumed.record(slot)


def test_records_may_be_read_in_any_order(scenes: WebDatasetConfig) -> None:
    one = Mixture(config(MixtureEntry(source=scenes, task="text")), seed=0)
    numbers = (40, 3, 100, 0, 12, 3, 41)
    keys = [one.record(Slot(number, 0, number)).key for number in numbers]
    for number, key in zip(numbers, keys, strict=True):
        fresh = Mixture(config(MixtureEntry(source=scenes, task="text")), seed=0)
        assert fresh.record(Slot(number, 0, number)).key == key


def test_seeds_differ(mixture: tuple[MixtureEntry, ...]) -> None:
    zero, one = (Mixture(config(*mixture), seed=seed) for seed in (0, 1))
    assert slots(zero, 0, 50) != slots(one, 0, 50)
    assert [zero.record(Slot(k, 0, k)).key for k in range(12)] != [
        one.record(Slot(k, 0, k)).key for k in range(12)
    ]


def test_shares_follow_the_weights(mixture: tuple[MixtureEntry, ...]) -> None:
    drawn = Counter(entry for _, entry, _ in slots(Mixture(config(*mixture), seed=0), 0, 9000))
    for entry, weight in enumerate((2, 1, 0.5, 1)):
        assert drawn[entry] / 9000 == pytest.approx(weight / 4.5, abs=0.02)


def test_a_replacement_is_the_next_record_of_the_order(scenes: WebDatasetConfig) -> None:
    one = Mixture(config(MixtureEntry(source=scenes, task="text")), seed=0)
    order = [one.record(Slot(k, 0, k)).key for k in range(12)]
    assert one.record(Slot(4, 0, 4), shift=1).key == order[5]
    assert one.record(Slot(11, 0, 11), shift=2).key == order[1]
    assert one.record(Slot(4, 0, 4), shift=1).index == 4


def test_unusable_sources_are_refused(scenes: WebDatasetConfig, tmp_path: Any) -> None:
    (tmp_path / "empty.jsonl").touch()
    empty = JsonlConfig(path=f"{tmp_path}/empty.jsonl", name="nothing")
    with pytest.raises(UsageError, match="'nothing' holds no record"):
        Mixture(config(MixtureEntry(source=empty, task="text")), seed=0)
    other = WebDatasetConfig(path=f"{tmp_path}/edits-*.tar", name="scenes")
    entries = [MixtureEntry(source=source, task="text") for source in (scenes, other)]
    with pytest.raises(UsageError, match="two data sources have the name 'scenes'"):
        Mixture(config(*entries), seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": []}, "at least one entry"),
        ({"max_text_tokens": 0}, "max_text_tokens"),
        ({"num_workers": -1}, "num_workers"),
        ({"bad_sample_limit": 1.5}, "bad_sample_limit"),
        ({"mixture": [{"weight": 0.0}]}, "weight must be above 0"),
        ({"mixture": [{"weight": float("nan")}]}, "weight must be a finite number"),
        ({"mixture": [{"max_turns": 0}]}, "max_turns"),
        ({"mixture": [{"task": "edit", "conversation": "drills"}]}, "conversation is for"),
        ({"mixture": [{"source": {"kind": "tars", "path": "x", "name": "y"}}]}, "webdataset"),
    ],
)
def test_a_wrong_number_is_refused_by_name(
    scenes: WebDatasetConfig, change: dict[str, Any], message: str
) -> None:
    plain = to_dict(config(MixtureEntry(source=scenes, task="text")))
    if change.get("mixture"):
        change = {"mixture": [{**plain["mixture"][0], **change["mixture"][0]}]}
    assert from_dict(DataConfig, plain).mixture[0].source == scenes
    with pytest.raises(UsageError, match=message):
        from_dict(DataConfig, {**plain, **change})


def test_every_cycle_keeps_the_shares_and_holds_every_entry(scenes: WebDatasetConfig) -> None:
    weights = (27.0, 5.0, 4.0, 1e-9)  # the last is close to zero
    entries = [MixtureEntry(source=scenes, task="text", weight=weight) for weight in weights]
    mixed = Mixture(config(*entries), seed=0)
    drawn = Counter(slot.entry for slot in slots(mixed, 3 * CYCLE, CYCLE))
    assert drawn[3] == 1
    assert [drawn[k] / CYCLE for k in range(3)] == pytest.approx(
        [27 / 36, 5 / 36, 4 / 36], abs=2e-5
    )


def test_an_entry_is_drawn_in_turn_across_cycles(mixture: tuple[MixtureEntry, ...]) -> None:
    mixed = Mixture(config(*mixture), seed=7)
    counts = Counter()
    for slot in slots(mixed, 0, 2 * CYCLE + 9):
        assert slot.number == counts[slot.entry]
        counts[slot.entry] += 1
    far = 10**12
    assert Mixture(config(*mixture), seed=7).slot(far) == mixed.slot(far)
