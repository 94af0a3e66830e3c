"""The loader: batches do not depend on how they are loaded; bad samples are replaced."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import Batch
from blip3o.data.collate import Preparer
from blip3o.data.loader import Loader
from blip3o.data.mixture import MixtureEntry
from blip3o.data.sources.webdataset import WebDatasetConfig

MakeLoader = Callable[..., Loader]
WriteTar = Callable[[Path, dict[str, bytes]], None]


def steps(loader: Loader, start: int, count: int) -> list[list[Batch]]:
    iterator = loader(start)
    taken = list(itertools.islice(iterator, count))
    iterator.close()
    return taken


def assert_same(left: list[list[Batch]], right: list[list[Batch]]) -> None:
    assert [len(step) for step in left] == [len(step) for step in right]
    for a, b in zip(itertools.chain(*left), itertools.chain(*right), strict=True):
        for field in dataclasses.fields(Batch):
            one, other = getattr(a, field.name), getattr(b, field.name)
            if isinstance(one, Tensor):
                assert torch.equal(one, other), field.name
            else:
                assert one == other, field.name


def test_workers_and_start_step_change_nothing(make_loader: MakeLoader) -> None:
    whole = steps(make_loader(), 0, 9)
    assert_same(steps(make_loader(num_workers=2), 0, 9), whole)
    assert_same(steps(make_loader(num_workers=2), 4, 5), whole[4:])
    loader = make_loader()
    for start in (8, 3, 0, 5):
        assert_same(steps(loader, start, 1), whole[start : start + 1])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_same_global_batches(make_loader: MakeLoader, world_size: int) -> None:
    def rows(taken: list[list[Batch]]) -> list[dict[int, list[int]]]:
        return [
            {
                int(index): ids[mask].tolist()
                for batch in step
                for index, ids, mask in zip(
                    batch.indices, batch.input_ids, batch.attention_mask, strict=True
                )
            }
            for step in taken
        ]

    whole = rows(steps(make_loader(), 2, 5))
    for workers in (0, 1, 4):  # more readers than shards
        shares = [
            rows(steps(make_loader(rank=r, world_size=world_size, num_workers=workers), 2, 5))
            for r in range(world_size)
        ]
        for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
            assert sum(len(part) for part in parts) == len(step)
            assert {k: v for part in parts for k, v in part.items()} == step
    with pytest.raises(UsageError, match="6 cannot be shared evenly among 4"):
        make_loader(world_size=4)


def test_the_rows_of_a_step_depend_on_its_samples_alone(make_loader: MakeLoader) -> None:
    def rows(loader: Loader, count: int) -> dict[int, tuple[str, list[int]]]:
        return {
            int(index): (batch.task, ids[mask].tolist())
            for batch in itertools.chain(*steps(loader, 0, count))
            for index, ids, mask in zip(
                batch.indices, batch.input_ids, batch.attention_mask, strict=True
            )
        }

    plain = rows(make_loader(), 8)
    assert sorted(plain) == list(range(48))
    assert rows(make_loader(global_batch_size=12, micro_batch_size=5), 4) == plain
    assert rows(make_loader(seed=1), 8) != plain


def test_random_choices_differ_for_every_sample(
    make_loader: MakeLoader, mixture: tuple[MixtureEntry, ...], preparer: Preparer
) -> None:
    loader = make_loader(mixture=mixture[:1], global_batch_size=12, micro_batch_size=12)
    decode = preparer.chat.tokenizer.decode
    drawn = [
        {
            decode(ids[mask].tolist())
            for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)
        }
        for (b,) in steps(loader, 0, 4)  # each step is an epoch
    ]
    assert all(len(texts) == 12 for texts in drawn)
    assert len(set.union(*drawn)) > 18  # of 24: two captions per image


def test_an_entry_may_name_the_field_of_its_conversations(
    make_loader: MakeLoader, shards: Path, preparer: Preparer
) -> None:
    entry = MixtureEntry(
        source=WebDatasetConfig(path=f"{shards}/scenes-*.tar", name="s"),
        task="image_to_text",
        max_turns=1,
        conversation="drills",
    )
    batches = list(itertools.chain(*steps(make_loader(mixture=(entry,)), 0, 4)))
    texts = [preparer.chat.tokenizer.decode(ids.tolist()) for b in batches for ids in b.input_ids]
    assert texts
    assert all("the cat red; the dog none" in text for text in texts)


def test_a_batch_has_one_task_and_at_most_the_micro_batch(make_loader: MakeLoader) -> None:
    taken = steps(make_loader(), 0, 10)
    for step in taken:
        assert sum(len(batch) for batch in step) == 6
        assert all(len(batch) <= 2 for batch in step)
    assert {batch.task for step in taken for batch in step} == {
        "text_to_image",
        "image_to_text",
        "text",
        "edit",
    }


def test_rows_of_similar_length_share_a_batch(make_loader: MakeLoader, shards: Path) -> None:
    entry = MixtureEntry(
        source=WebDatasetConfig(path=f"{shards}/scenes-*.tar", name="s"), task="text_to_image"
    )
    for step in steps(make_loader(mixture=(entry,)), 0, 3):
        lengths = [batch.attention_mask.sum(1).tolist() for batch in step]
        assert sorted(itertools.chain(*lengths)) == list(itertools.chain(*lengths))


def test_loading_leaves_the_global_random_state_alone(make_loader: MakeLoader) -> None:
    before = torch.random.get_rng_state()
    steps(make_loader(), 0, 2)
    assert torch.equal(torch.random.get_rng_state(), before)


def caption(text: str = "a cat") -> bytes:
    return json.dumps({"captions": [text]}).encode()


@pytest.fixture
def damaged(tmp_path: Path, write_tar: WriteTar, shards: Path) -> tuple[MixtureEntry, ...]:
    """Forty records; five of them are bad, each in a different way."""
    good = WebDatasetConfig(path=f"{shards}/scenes-0.tar", name="good").build().read(3)[1]["image"]
    members = {}
    for number in range(40):
        image, fields = good, caption(f"cat {number}")
        match number:
            case 4:
                image = good[:45]
            case 11:
                image = b""
            case 17:
                image = b"GIF8" + good[4:]
            case 23:
                fields = b'{"captions": ["a'
            case 30:
                fields = caption(" ")
        members |= {f"{number}.png": image, f"{number}.json": fields}
    write_tar(tmp_path / "damaged.tar", members)
    source = WebDatasetConfig(path=f"{tmp_path}/damaged.tar", name="damaged")
    return (MixtureEntry(source=source, task="text_to_image"),)


def test_bad_samples_are_counted_listed_and_replaced(
    make_loader: MakeLoader, damaged: tuple[MixtureEntry, ...], tmp_path: Path
) -> None:
    runs = []
    for workers in (0, 2):
        quarantine = tmp_path / f"quarantine-{workers}.jsonl"
        loader = make_loader(
            mixture=damaged,
            global_batch_size=8,
            num_workers=workers,
            quarantine=quarantine,
            bad_sample_limit=0.5,
        )
        runs.append(steps(loader, 0, 5))
        assert loader.num_seen == 40
        lines = [json.loads(line) for line in quarantine.read_text(encoding="utf-8").splitlines()]
        assert loader.num_bad == len(lines) >= 5
        assert {line["key"] for line in lines} >= {"4", "11", "17", "30"}
        assert sum(line["key"] == "?" for line in lines) >= 1  # its JSON could not be read
        assert all(line["source"] == "damaged" and line["reason"] for line in lines)
        assert all("\n" not in line["reason"] for line in lines)
    assert_same(*runs)
    resumed = make_loader(mixture=damaged, global_batch_size=8, bad_sample_limit=0.5)
    assert_same(steps(resumed, 3, 2), runs[0][3:])


def test_a_replaced_sample_leaves_the_others_as_they_are(
    make_loader: MakeLoader, damaged: tuple[MixtureEntry, ...], tmp_path: Path
) -> None:
    def texts(quarantine: Path) -> dict[int, list[int]]:
        loader = make_loader(
            mixture=damaged, global_batch_size=8, quarantine=quarantine, bad_sample_limit=0.5
        )
        batches = itertools.chain(*steps(loader, 0, 5))
        return {
            int(index): ids[mask].tolist()
            for batch in batches
            for index, ids, mask in zip(
                batch.indices, batch.input_ids, batch.attention_mask, strict=True
            )
        }

    before = texts(tmp_path / "q.jsonl")
    bad = {
        json.loads(line)["index"]
        for line in (tmp_path / "q.jsonl").read_text(encoding="utf-8").splitlines()
    }
    path = Path(damaged[0].source.path)
    whole = path.read_bytes().replace(b'{"captions": [" "]}', b'{"captions": ["c"]}')
    path.write_bytes(whole)  # repair one bad record; nothing else moves
    after = texts(tmp_path / "r.jsonl")
    changed = {index for index in before if before[index] != after[index]}
    assert changed
    assert changed <= bad


def test_too_many_bad_samples_stop_the_run(
    make_loader: MakeLoader, damaged: tuple[MixtureEntry, ...], tmp_path: Path
) -> None:
    quarantine = tmp_path / "q.jsonl"
    stops = []
    for workers in (0, 2):
        loader = make_loader(
            mixture=damaged, num_workers=workers, quarantine=quarantine, global_batch_size=8
        )
        with pytest.raises(UsageError, match=r"more than the limit of 1\.0%.*q\.jsonl$") as caught:
            steps(loader, 0, 100)
        assert "\n" not in str(caught.value)
        stops.append(loader.num_seen)
    assert stops[0] == stops[1]
    steps(make_loader(mixture=damaged, bad_sample_limit=0.5), 0, 60)  # one sixth is bad
    with pytest.raises(UsageError, match=r"limit of 0\.0%"):
        steps(make_loader(mixture=damaged, bad_sample_limit=0.0), 0, 7)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_of_bad_samples_only_stops_the_run_in_one_line(
    make_loader: MakeLoader, tmp_path: Path, write_tar: WriteTar, workers: int
) -> None:
    write_tar(tmp_path / "bad.tar", {f"{k}.json": caption() for k in range(3)})
    source = WebDatasetConfig(path=f"{tmp_path}/bad.tar", name="bad")
    entry = MixtureEntry(source=source, task="text_to_image")
    quarantine = tmp_path / "q.jsonl"
    loader = make_loader(
        mixture=(entry,), num_workers=workers, bad_sample_limit=1.0, quarantine=quarantine
    )
    with pytest.raises(UsageError, match=r"^100 bad samples in a row in bad; the last: .*'image'$"):
        steps(loader, 0, 1)
    assert len(quarantine.read_text(encoding="utf-8").splitlines()) == 100


def test_an_unknown_task_is_refused_before_anything_is_read(make_loader: MakeLoader) -> None:
    missing = WebDatasetConfig(path="/nowhere/*.tar", name="missing")
    with pytest.raises(UsageError, match="unknown task 'txt'"):
        make_loader(mixture=(MixtureEntry(source=missing, task="txt"),))


def test_first_images_skips_bad_ones(
    make_loader: MakeLoader, damaged: tuple[MixtureEntry, ...], mixture: tuple[MixtureEntry, ...]
) -> None:
    assert len(make_loader(mixture=damaged).first_images(36)) == 36
    edits_first = (mixture[3], mixture[0])
    assert len(make_loader(mixture=edits_first).first_images(5)) == 5
    assert len(make_loader(mixture=edits_first[:1]).first_images(5)) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_workers_ignore_signals(make_loader: MakeLoader, number: int) -> None:
    old = signal.signal(number, signal.SIG_DFL)  # the handler of a worker that is not forked
    try:
        iterator = make_loader(num_workers=1)(0)
        next(iterator)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, number)
        for _ in range(12):  # more than the loader prefetches
            next(iterator)
        iterator.close()
    finally:
        signal.signal(number, old)


def test_a_bug_does_not_count_as_a_bad_sample_and_stops_the_workers(
    make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Preparer, example: object) -> None:
        raise MemoryError("not the sample's fault")

    monkeypatch.setattr(Preparer, "prepare", die)
    for workers in (0, 1):
        with pytest.raises(MemoryError, match="not the sample's fault"):
            steps(make_loader(num_workers=workers), 0, 1)
        assert not multiprocessing.active_children()
