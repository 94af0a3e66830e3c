"""The feature cache: equal to features computed online, one file a shard, never of other data."""

import dataclasses
import errno
import io
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.shard import Shard
from blip3o.data.cache import FeatureCache, build_cache
from blip3o.data.collate import Preparer
from blip3o.data.loader import Loader
from blip3o.data.mixture import MixtureEntry
from blip3o.data.order import RecordOrder
from blip3o.data.sources import Source, plain_files
from blip3o.data.sources.folder import FolderConfig
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.sources.plain_files import cut
from blip3o.data.sources.webdataset import WebDatasetConfig, WebDatasetSource

MakeLoader = Callable[..., Loader]
WriteTar = Callable[[Path, dict[str, bytes]], None]
ENCODER = "encoder-8"


def encode(pixels: Tensor) -> Tensor:
    """A small frozen encoder with four tokens of six channels."""
    return torch.nn.functional.avg_pool2d(pixels, 4).flatten(2).mT.repeat(1, 1, 2) * 3


class Counted:
    """The encoder, with a record of the numbers of images that it was given."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[int] = []
        self._stop_at = stop_at

    def __call__(self, pixels: Tensor) -> Tensor:
        self.calls.append(len(pixels))
        if len(self.calls) == self._stop_at:
            raise KeyboardInterrupt
        return encode(pixels)


def build(
    source: Source, folder: Path | str, *, role: str = "image", **changes: Any
) -> FeatureCache:
    cache = FeatureCache(str(folder), changes.pop("fingerprint", ENCODER))
    settings: dict[str, Any] = {"image_px": 8, "batch_size": 5, **changes}
    build_cache(cache, source, role, settings.pop("encode", encode), **settings)
    return cache


def opened(source: Source, folder: Path | str, **changes: Any) -> FeatureCache:
    cache = build(source, folder, **changes)
    cache.open(source, "image")
    return cache


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of all files by their path in the folder."""
    files = (one for one in folder.rglob("*") if one.is_file())
    return {str(one.relative_to(folder)): one.read_bytes() for one in files}


def only_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.features")
    return file


@pytest.fixture
def source(scenes: WebDatasetConfig) -> WebDatasetSource:
    """Two shards, of seven and five records."""
    return scenes.build()


@pytest.fixture
def store() -> Iterator[str]:
    """An address in a store of objects."""
    memory = fsspec.filesystem("memory")
    yield "memory://bucket/features"
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


def test_cached_features_are_those_computed_online(
    make_loader: MakeLoader, preparer: Preparer, mixture: tuple[MixtureEntry, ...], tmp_path: Path
) -> None:
    for entry, roles in ((mixture[0], ["image"]), (mixture[3], ["source", "target"])):
        for role in roles:
            build(entry.source.build(), tmp_path, role=role)
    cached = dataclasses.replace(preparer, cache=FeatureCache(str(tmp_path), ENCODER))
    both = dataclasses.replace(cached, keep_pixels=True)
    for workers in (0, 1):
        loaders = [make_loader(preparer=p, num_workers=workers) for p in (preparer, cached, both)]
        for online, features, kept in zip(*(islice_flat(one) for one in loaders), strict=True):
            assert torch.equal(online.input_ids, features.input_ids)
            assert features.prompt_pixels is features.target_pixels is None
            for name in ("prompt", "target"):
                pixels = getattr(online, f"{name}_pixels")
                rows = getattr(features, f"{name}_features")
                assert (pixels is None) == (rows is None)
                if pixels is not None:
                    assert torch.equal(rows, encode(pixels).half())
                    assert torch.equal(getattr(kept, f"{name}_features"), rows)
            if online.target_pixels is not None:
                assert kept.target_pixels is not None
                assert torch.equal(kept.target_pixels, online.target_pixels)
            assert kept.prompt_pixels is None


def test_target_images_come_at_the_size_of_the_decoder_too(
    make_loader: MakeLoader, preparer: Preparer, mixture: tuple[MixtureEntry, ...], tmp_path: Path
) -> None:
    """With and without cached features; images of prompts have one size only."""
    for entry, roles in ((mixture[0], ["image"]), (mixture[3], ["source", "target"])):
        for role in roles:
            build(entry.source.build(), tmp_path, role=role)
    larger = dataclasses.replace(preparer, keep_pixels=True, decoder_px=16)
    same = dataclasses.replace(larger, image_px=16)
    cached = dataclasses.replace(larger, cache=FeatureCache(str(tmp_path), ENCODER))
    found = 0
    loaders = [islice_flat(make_loader(preparer=p)) for p in (preparer, larger, same, cached)]
    for plain, both, large, kept in zip(*loaders, strict=True):
        assert plain.decoder_pixels is None
        assert (both.decoder_pixels is None) == (plain.target_pixels is None)
        if both.decoder_pixels is not None:
            found += 1
            assert torch.equal(both.target_pixels, plain.target_pixels)
            assert torch.equal(both.decoder_pixels, large.target_pixels)
            assert torch.equal(kept.decoder_pixels, both.decoder_pixels)
            assert both.decoder_pixels.shape[1:] == (3, 16, 16)
    assert found


def islice_flat(loader: Loader) -> list:
    return list(itertools.chain(*itertools.islice(loader(0), 4)))


def test_a_file_holds_a_shard_and_has_the_name_of_its_content(
    source: WebDatasetSource, scenes: WebDatasetConfig, shards: Path, tmp_path: Path
) -> None:
    build(source, tmp_path / "cache")
    files = contents(tmp_path / "cache")
    assert len(files) == 2
    record = 4 * 6 * 2 + 16
    sizes = sorted(map(len, files.values()))
    assert [size // record for size in sizes] == [5, 7]
    copy = tmp_path / "copy"
    copy.mkdir()
    for tar in shards.glob("scenes-*.tar"):
        shutil.copyfile(tar, copy / tar.name)  # with another time
    counted = Counted()
    build(WebDatasetConfig(path=f"{copy}/*.tar", name="scenes").build(), tmp_path / "cache")
    (shards / "scenes-0.tar").unlink()
    cache = opened(scenes.build(), tmp_path / "cache", encode=counted)
    assert not counted.calls
    assert contents(tmp_path / "cache") == files
    assert torch.equal(cache.get("scenes", "image", 0), opened(source, tmp_path).get(*_place(7)))


def _place(position: int) -> tuple[str, str, int]:
    return "scenes", "image", position


def test_features_of_another_encoder_role_or_data_are_never_read(
    source: WebDatasetSource, tmp_path: Path
) -> None:
    build(source, tmp_path)
    with pytest.raises(UsageError, match=r"2 of 2 shards of scenes/image have no features .*cache"):
        FeatureCache(str(tmp_path), "another-8").open(source, "image")
    with pytest.raises(UsageError, match=r"2 of 2 shards of scenes/target have no features"):
        FeatureCache(str(tmp_path), ENCODER).open(source, "target")
    before = opened(source, tmp_path)
    other = opened(source, tmp_path, fingerprint="another-8", encode=lambda p: encode(p) + 1)
    for position in range(12):
        mine, others = before.get(*_place(position)), other.get(*_place(position))
        assert torch.allclose(others.float(), mine.float() + 1, atol=1e-2)


def test_a_loader_refuses_a_cache_without_some_of_its_data(
    source: WebDatasetSource,
    scenes: WebDatasetConfig,
    shards: Path,
    make_loader: MakeLoader,
    preparer: Preparer,
    tmp_path: Path,
) -> None:
    cache = build(source, tmp_path)
    (shards / "scenes-1.tar").rename(shards / "scenes-3.tar")
    entry = MixtureEntry(source=scenes, task="text_to_image")
    stale = dataclasses.replace(preparer, cache=cache)
    with pytest.raises(UsageError, match="1 of 2 shards of scenes/image have no features"):
        make_loader(mixture=(entry,), preparer=stale)
    make_loader(mixture=(dataclasses.replace(entry, task="text"),), preparer=stale)
    counted = Counted()
    build(scenes.build(), tmp_path, encode=counted)
    assert counted.calls == [1, 5]  # the shape, and the shard with another name
    make_loader(mixture=(entry,), preparer=stale)


def test_a_stopped_build_resumes_with_the_next_shard(
    source: WebDatasetSource, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "cache", encode=Counted(stop_at=4))
    assert len(contents(tmp_path / "cache")) == 1
    counted = Counted()
    build(source, tmp_path / "cache", encode=counted)
    assert counted.calls == [1, 5]
    build(source, tmp_path / "cache", encode=counted)
    assert counted.calls == [1, 5]
    build(source, tmp_path / "at-once")
    assert contents(tmp_path / "cache") == contents(tmp_path / "at-once")


def in_processes(acts: list[Callable[[], object]]) -> list[ForkProcess]:
    processes = [multiprocessing.get_context("fork").Process(target=act) for act in acts]
    for process in processes:
        process.start()
    return processes


def many_shards(folder: Path, write_tar: WriteTar, count: int = 6) -> WebDatasetSource:
    for shard in range(count):
        members = {}
        for number in range(4):
            image = io.BytesIO()
            Image.new("RGB", (8, 8), (40 * shard, 60 * number, 0)).save(image, "PNG")
            members[f"{shard}{number}.png"] = image.getvalue()
        members[f"{shard}4.png"] = b"broken"
        write_tar(folder / f"many-{shard}.tar", members)
    return WebDatasetConfig(path=f"{folder}/many-*.tar", name="many").build()


def test_kill_9_leaves_whole_files_and_the_next_build_finishes(
    tmp_path: Path, write_tar: WriteTar
) -> None:
    source = many_shards(tmp_path, write_tar)

    def slow(pixels: Tensor) -> Tensor:
        time.sleep(0.1)
        return encode(pixels)

    (process,) = in_processes(
        [lambda: build(source, tmp_path / "cache", encode=slow, batch_size=1)]
    )
    while len(list(tmp_path.glob("cache/*/*.features"))) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    killed = {name: data for name, data in contents(tmp_path / "cache").items() if "/." not in name}
    assert 2 <= len(killed) < 6
    counted = Counted()
    build(source, tmp_path / "cache", encode=counted, batch_size=1)
    assert len(counted.calls) == 1 + 4 * (6 - len(killed))
    build(source, tmp_path / "at-once", batch_size=1)
    whole = contents(tmp_path / "at-once")
    assert contents(tmp_path / "cache") == whole  # and no scratch file is left
    assert killed.items() <= whole.items()


@pytest.mark.parametrize("is_static", [False, True])
def test_any_number_of_processes_write_the_same_bytes_and_do_the_work_once(
    tmp_path: Path, write_tar: WriteTar, is_static: bool
) -> None:
    source = many_shards(tmp_path, write_tar)
    build(source, tmp_path / "one")

    def act(number: int) -> None:
        def slow(pixels: Tensor) -> Tensor:
            with (tmp_path / f"calls-{number}").open("a") as file:
                file.write(f"{len(pixels)}\n")
            time.sleep(0.1)
            return encode(pixels)

        part = Shard(number + 1, 3) if is_static else Shard()
        build(source, tmp_path / "three", encode=slow, shard=part)

    processes = in_processes([lambda number=number: act(number) for number in range(3)])
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    calls = [(tmp_path / f"calls-{number}").read_text().split() for number in range(3)]
    assert sorted(itertools.chain(*calls)) == ["1"] * 3 + ["4"] * 6
    assert min(map(len, calls)) > 1  # each has done some of the work


def test_parts_may_be_done_on_several_machines_one_after_the_other(
    tmp_path: Path, write_tar: WriteTar
) -> None:
    source = many_shards(tmp_path, write_tar, count=4)
    for number, count in ((3, 3), (1, 2)):
        build(source, tmp_path / "cache", shard=Shard(number, count))
    with pytest.raises(UsageError, match="2 of 4 shards of many/image have no features"):
        FeatureCache(str(tmp_path / "cache"), ENCODER).open(source, "image")
    opened(source, tmp_path / "cache", shard=Shard(2, 2))
    build(source, tmp_path / "one")
    assert contents(tmp_path / "cache") == contents(tmp_path / "one")


def test_a_store_holds_the_bytes_of_a_folder_and_gives_the_same_batches(
    source: WebDatasetSource,
    scenes: WebDatasetConfig,
    make_loader: MakeLoader,
    preparer: Preparer,
    tmp_path: Path,
    store: str,
) -> None:
    memory = fsspec.filesystem("memory")
    for number in (1, 2):
        build(source, store, shard=Shard(number, 2))
    cached = {
        name.removeprefix("/bucket/features/"): data.getvalue()
        for name, data in memory.store.items()
    }
    build(source, tmp_path / "cache")
    assert cached == contents(tmp_path / "cache")
    entry = MixtureEntry(source=scenes, task="text_to_image")
    batches = [
        islice_flat(
            make_loader(
                mixture=(entry,),
                preparer=dataclasses.replace(preparer, cache=FeatureCache(place, ENCODER)),
                num_workers=workers,
            )
        )
        for place, workers in ((str(tmp_path / "cache"), 0), (store, 0), (store, 1))
    ]
    for local, *remote in zip(*batches, strict=True):
        for one in remote:
            assert torch.equal(one.target_features, local.target_features)
    name = next(iter(memory.store))
    memory.pipe(name, memory.cat(name)[:-20])
    counted = Counted()
    opened(source, store, encode=counted)
    assert counted.calls in ([1, 5, 2], [1, 5])


def test_nothing_appears_in_a_store_before_a_shard_is_complete(
    source: WebDatasetSource, store: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(source, store, encode=Counted(stop_at=3))
    assert not fsspec.filesystem("memory").store


def test_a_web_server_is_refused_as_a_cache() -> None:
    with pytest.raises(UsageError, match="cannot write to the HTTP server"):
        FeatureCache("https://host/features", ENCODER)


def test_a_cache_of_an_older_version_is_refused(source: WebDatasetSource, tmp_path: Path) -> None:
    (tmp_path / "scenes.image.f16").touch()
    with pytest.raises(UsageError, match=r"older version.*delete .*scenes\.image\.\*") as caught:
        build(source, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_reported_and_the_build_resumes(
    source: WebDatasetSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UsageError, match=r"cannot write .*\.features: .*free some space"):
            build(source, tmp_path)
    assert not [name for name in contents(tmp_path) if "features" in name]
    opened(source, tmp_path)


def test_a_source_may_begin_with_broken_images(tmp_path: Path, write_tar: WriteTar) -> None:
    good = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(good, "PNG")
    members = {f"{k}.png": b"broken" if k < 7 else good.getvalue() for k in range(12)}
    write_tar(tmp_path / "some-1.tar", members)
    write_tar(tmp_path / "some-0.tar", {f"{k}.png": b"broken" for k in range(3)})
    write_tar(tmp_path / "some-2.tar", {})
    source = WebDatasetConfig(path=f"{tmp_path}/some-*.tar", name="some").build()
    cache = opened(source, tmp_path)
    assert cache.left_out("some", "image").keys() == set(range(10))
    for position in range(15):
        if position < 10:
            with pytest.raises(ValueError, match="could not be read when its features were cached"):
                cache.get("some", "image", position)
        else:
            assert cache.get("some", "image", position).shape == (4, 6)


def test_a_bad_image_is_a_bad_sample_with_a_cache(
    tmp_path: Path, write_tar: WriteTar, make_loader: MakeLoader, preparer: Preparer, shards: Path
) -> None:
    good = WebDatasetConfig(path=f"{shards}/scenes-0.tar", name="g").build().read(1)[1]["image"]
    members = {}
    for number in range(12):
        members[f"{number}.png"] = b"broken" if number in (2, 9) else good
        members[f"{number}.json"] = json.dumps({"captions": [f"cat {number}"]}).encode()
    write_tar(tmp_path / "some.tar", members)
    config = WebDatasetConfig(path=f"{tmp_path}/some.tar", name="some")
    build(config.build(), tmp_path)
    cached = dataclasses.replace(preparer, cache=FeatureCache(str(tmp_path), ENCODER))
    entries = (MixtureEntry(source=config, task="text_to_image"),)
    runs = []
    for number, one in enumerate((preparer, cached)):
        quarantine = tmp_path / f"{number}.jsonl"
        loader = make_loader(mixture=entries, preparer=one, quarantine=quarantine)
        ids = [
            batch.input_ids.tolist() for batch in itertools.chain(*itertools.islice(loader(0), 2))
        ]
        lines = quarantine.read_text(encoding="utf-8").splitlines()
        runs.append((ids, [json.loads(line)["key"] for line in lines]))
    assert runs[0] == runs[1]
    assert set(runs[0][1]) == {"2", "9"}


def test_a_source_without_images_of_the_role_is_refused(
    source: WebDatasetSource, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"no image 'target' of scenes can be read: .*'target'"):
        build(source, tmp_path, role="target")


def test_features_beyond_half_precision_are_refused(
    source: WebDatasetSource, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"outside the range of half precision.*feature_cache=null"
    ):
        build(source, tmp_path, encode=lambda pixels: encode(pixels) * 1e6)


def test_an_open_cache_is_pickled_without_its_features(
    source: WebDatasetSource, tmp_path: Path
) -> None:
    cache = opened(source, tmp_path)
    row = cache.get("scenes", "image", 4)
    assert len(pickle.dumps(cache)) < 1000
    assert torch.equal(pickle.loads(pickle.dumps(cache)).get("scenes", "image", 4), row)


def folder_of(folder: Path, *levels: int) -> Any:
    """A folder of images; all folders get the same source name."""
    folder.mkdir(exist_ok=True)
    for number, level in enumerate(levels):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(folder / f"{number}.png")
    return FolderConfig(path=str(folder), name="own")


def test_data_sets_with_one_name_share_a_folder(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", 10, 20, 30).build()
    second = folder_of(tmp_path / "b", 200, 210).build()
    one, two = (opened(source, tmp_path / "cache") for source in (first, second))
    assert two.get("own", "image", 1)[0, 0] > one.get("own", "image", 1)[0, 0] + 1
    counted = Counted()
    for source in (first, second):
        build(source, tmp_path / "cache", encode=counted)
    assert not counted.calls


def test_an_edited_folder_or_list_repeats_only_the_shards_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_files, "_SHARD_RECORDS", 3)
    config = folder_of(tmp_path / "a", 10, 20, 30, 40, 50)
    lines = [json.dumps({"image": f"{number}.png", "caption": "x"}) for number in range(5)]
    listed = JsonlConfig(path=f"{tmp_path}/a/list.jsonl", name="list")
    wrapped = JsonlConfig(path=f"{tmp_path}/a/list.json", name="wrapped")

    def write_lists() -> None:
        (tmp_path / "a" / "list.jsonl").write_text("\n".join(lines))
        (tmp_path / "a" / "list.json").write_text(f"[{','.join(lines)}]")

    def counts() -> list[list[int]]:
        found = []
        for one in (config, listed, wrapped):
            counted = Counted()
            cache = build(one.build(), tmp_path / "cache", encode=counted)
            cache.open(one.build(), "image")
            for position in range(5):
                cache.get(one.name, "image", position)
            found.append(counted.calls)
        return found

    write_lists()
    assert counts() == [[1, 3, 2]] * 3
    assert counts() == [[]] * 3
    Image.new("RGB", (8, 8), (250, 0, 0)).save(tmp_path / "a" / "1.png")
    assert counts() == [[1, 3]] * 3
    assert opened(config.build(), tmp_path / "cache").get("own", "image", 1)[0, 0] > 2
    lines[4] = lines[4].replace("x", "y")
    write_lists()
    assert counts() == [[], [1, 2], [1, 2]]


def test_shards_of_a_folder_do_not_change_the_order_of_its_samples() -> None:
    pieces = [len(shard) for shard in cut(5000)]
    assert len(pieces) == 3
    one, two = (RecordOrder(lengths, 7, "order/0") for lengths in ([5000], pieces))
    assert [one.position(1, k) for k in range(5000)] == [two.position(1, k) for k in range(5000)]


def test_features_that_changed_places_are_never_read(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", 10, 20, 30).build()
    build(first, tmp_path / "one")
    build(folder_of(tmp_path / "b", 200, 210, 220).build(), tmp_path / "two")
    one, two = only_file(tmp_path / "one"), only_file(tmp_path / "two")
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())  # a file under the name of another one
    with pytest.raises(UsageError, match="1 of 1 shards of own/image have no features"):
        FeatureCache(str(tmp_path / "one"), ENCODER).open(first, "image")
    size = 4 * 6 * 2 + 16
    one.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    cache = FeatureCache(str(tmp_path / "one"), ENCODER)
    cache.open(first, "image")
    assert cache.get("own", "image", 2).isfinite().all()
    with pytest.raises(UsageError, match="damaged: the row of record 1"):
        cache.get("own", "image", 1)


@pytest.mark.parametrize("place", [0, 40, 50, 70, -1, -9, -30, -60])
def test_a_flipped_bit_anywhere_is_found_and_the_shard_is_computed_again(
    tmp_path: Path, place: int
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "9.png").write_bytes(b"broken")
    source = folder_of(tmp_path / "a", 10, 20, 30).build()
    build(source, tmp_path / "cache")
    file = only_file(tmp_path / "cache")
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 1
    file.write_bytes(damaged)
    counted = Counted()
    cache = FeatureCache(str(tmp_path / "cache"), ENCODER)
    if place >= 0:
        cache.open(source, "image")
        position = place // (4 * 6 * 2 + 16)
        cache.get("own", "image", 1 - position)
        with pytest.raises(UsageError, match=rf"damaged: the row of record {position} .*again"):
            cache.get("own", "image", position)
    with pytest.raises(UsageError, match="no features"):
        cache.open(source, "image")
    build(source, tmp_path / "cache", encode=counted)
    assert counted.calls == [1, 3]
    assert file.read_bytes() == whole


@pytest.mark.parametrize("size", [0, 5, 20, 100])
def test_a_truncated_file_is_computed_again_before_the_run(
    source: WebDatasetSource, tmp_path: Path, size: int
) -> None:
    build(source, tmp_path)
    before = contents(tmp_path)
    for file in tmp_path.glob("*/*.features"):
        os.truncate(file, size)
    opened(source, tmp_path)
    assert before.items() <= contents(tmp_path).items()


@pytest.mark.parametrize("change", ["overwritten", "removed"])
def test_a_file_that_changes_during_a_run_stops_it(
    source: WebDatasetSource,
    scenes: WebDatasetConfig,
    make_loader: MakeLoader,
    preparer: Preparer,
    tmp_path: Path,
    change: str,
) -> None:
    cache = build(source, tmp_path)
    entry = MixtureEntry(source=scenes, task="text_to_image")
    loader = make_loader(mixture=(entry,), preparer=dataclasses.replace(preparer, cache=cache))
    for file in tmp_path.glob("*/*.features"):
        if change == "removed":
            file.unlink()
        else:
            file.write_bytes(b"\0" * file.stat().st_size)
    expected = r"\.features is damaged" if change == "overwritten" else "cannot read .*features"
    with pytest.raises(UsageError, match=expected):
        next(loader(0))


def test_records_without_an_image_are_named_with_their_reason(
    tmp_path: Path, write_tar: WriteTar
) -> None:
    source = many_shards(tmp_path, write_tar, count=2)
    cache = opened(source, tmp_path)
    notes = cache.left_out("many", "image")
    assert {position: note["key"] for position, note in notes.items()} == {4: "04", 9: "14"}
    with pytest.raises(ValueError, match=f"were cached: {notes[9]['reason']}"):
        cache.get("many", "image", 9)


def test_features_that_do_not_fit_on_the_disk_are_refused_before_they_are_computed(
    source: WebDatasetSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = 12 * (4 * 6 * 2 + 16)
    for free in (need - 1, need):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if free < need:
            with pytest.raises(UsageError, match=r"features of 12 images .* are free on the disk"):
                build(source, tmp_path / "cache")
            assert not (tmp_path / "cache").exists()
        else:
            build(source, tmp_path / "cache")
