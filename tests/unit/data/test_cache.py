"""The feature cache: equal to features computed online, resumable, refused when stale."""

import dataclasses
import errno
import io
import itertools
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.data import cache as module
from blip3o.data.cache import FeatureCache, build_cache
from blip3o.data.collate import Preparer
from blip3o.data.loader import Loader
from blip3o.data.mixture import MixtureEntry
from blip3o.data.sources.folder import FolderConfig, FolderSource
from blip3o.data.sources.webdataset import WebDatasetConfig, WebDatasetSource

MakeLoader = Callable[..., Loader]
WriteTar = Callable[[Path, dict[str, bytes]], None]


def encode(pixels: Tensor) -> Tensor:
    """A small frozen encoder with four tokens of six channels."""
    return torch.nn.functional.avg_pool2d(pixels, 4).flatten(2).mT.repeat(1, 1, 2) * 3


def build(
    source: WebDatasetSource | FolderSource, folder: Path, *, role: str = "image", **changes: object
) -> None:
    settings: dict[str, Any] = {"fingerprint": "encoder/8", "image_px": 8, "batch_size": 5}
    settings |= changes
    function = settings.pop("encode", encode)
    build_cache(source, role, function, folder, **settings)


@pytest.fixture
def source(scenes: WebDatasetConfig) -> WebDatasetSource:
    return scenes.build()


def test_cached_features_are_those_computed_online(
    make_loader: MakeLoader, preparer: Preparer, mixture: tuple[MixtureEntry, ...], tmp_path: Path
) -> None:
    for entry, roles in ((mixture[0], ["image"]), (mixture[3], ["source", "target"])):
        for role in roles:
            build(entry.source.build(), tmp_path, role=role)
    cached = dataclasses.replace(preparer, cache=FeatureCache(tmp_path, "encoder/8"))
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
    cached = dataclasses.replace(larger, cache=FeatureCache(tmp_path, "encoder/8"))
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


def test_another_encoder_is_refused(source: WebDatasetSource, tmp_path: Path) -> None:
    build(source, tmp_path)
    stale = FeatureCache(tmp_path, "another/8")
    assert not stale.is_complete("scenes", "image")
    with pytest.raises(UsageError, match=r"scenes\.image\.f16 was made by another image encoder"):
        stale.get("scenes", "image", 0)
    with pytest.raises(UsageError, match="no complete feature cache of scenes/target"):
        stale.get("scenes", "target", 0)


def test_other_data_of_the_same_name_is_refused(
    source: WebDatasetSource,
    scenes: WebDatasetConfig,
    shards: Path,
    make_loader: MakeLoader,
    preparer: Preparer,
    tmp_path: Path,
) -> None:
    build(source, tmp_path)
    cache = FeatureCache(tmp_path, "encoder/8")
    cache.check(source, "image")
    (shards / "scenes-1.tar").rename(shards / "scenes-3.tar")
    with pytest.raises(UsageError, match="was made from other data; delete it"):
        cache.check(scenes.build(), "image")
    entry = MixtureEntry(source=scenes, task="text_to_image")
    stale = dataclasses.replace(preparer, cache=cache)
    with pytest.raises(UsageError, match="was made from other data; delete it"):
        make_loader(mixture=(entry,), preparer=stale)
    make_loader(mixture=(dataclasses.replace(entry, task="text"),), preparer=stale)
    build(scenes.build(), tmp_path)
    cache.check(scenes.build(), "image")


def test_a_stopped_build_resumes(source: WebDatasetSource, tmp_path: Path) -> None:
    calls: list[int] = []

    def stops(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path, encode=stops)
    cache = FeatureCache(tmp_path, "encoder/8")
    with pytest.raises(UsageError, match="unfinished"):
        cache.get("scenes", "image", 0)
    build(source, tmp_path, encode=stops)
    assert calls == [5, 5, 5, 2]
    build(source, tmp_path, encode=stops)
    assert calls == [5, 5, 5, 2]
    build(source, tmp_path / "at-once")
    at_once = FeatureCache(tmp_path / "at-once", "encoder/8")
    for position in range(12):
        expected = at_once.get("scenes", "image", position)
        assert torch.equal(cache.get("scenes", "image", position), expected)


def test_a_truncated_array_is_built_again(source: WebDatasetSource, tmp_path: Path) -> None:
    build(source, tmp_path)
    os.truncate(tmp_path / "scenes.image.f16", 100)
    cache = FeatureCache(tmp_path, "encoder/8")
    assert not cache.is_complete("scenes", "image")
    build(source, tmp_path)
    assert cache.is_complete("scenes", "image")


def test_a_rebuild_that_dies_early_leaves_nothing_to_trust(
    source: WebDatasetSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(source, tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", fail)
        with pytest.raises(OSError, match="disk full"):
            build(source, tmp_path, fingerprint="another/8")
    for fingerprint in ("encoder/8", "another/8"):
        assert not FeatureCache(tmp_path, fingerprint).is_complete("scenes", "image")


def test_a_run_that_reads_features_keeps_them_when_another_encoder_takes_the_folder(
    source: WebDatasetSource, tmp_path: Path
) -> None:
    build(source, tmp_path)
    reading = FeatureCache(tmp_path, "encoder/8")
    first, second = (reading.get("scenes", "image", k).clone() for k in (0, 1))
    build(source, tmp_path, fingerprint="another/8", encode=lambda pixels: encode(pixels) + 1)
    assert torch.equal(reading.get("scenes", "image", 0), first)
    assert torch.equal(reading.get("scenes", "image", 1), second)
    now = FeatureCache(tmp_path, "another/8").get("scenes", "image", 0)
    assert torch.allclose(now.float(), first.float() + 1, atol=1e-2)


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_full_disk_is_reported_and_the_build_resumes(
    source: WebDatasetSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    calls: list[int] = []
    sync = os.fsync

    def full(descriptor: int) -> None:
        if len(calls) == chunks:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    def counted(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return encode(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match=r"scenes\.image\.f16: No space left.*free some space"):
            build(source, tmp_path, encode=counted)
    build(source, tmp_path, encode=counted)
    assert calls == [5, 5, 5, 2]
    assert FeatureCache(tmp_path, "encoder/8").is_complete("scenes", "image")


def test_a_source_may_begin_with_broken_images(tmp_path: Path, write_tar: WriteTar) -> None:
    good = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(good, "PNG")
    members = {f"{k}.png": b"broken" if k < 7 else good.getvalue() for k in range(12)}
    write_tar(tmp_path / "some.tar", members)
    build(WebDatasetConfig(path=f"{tmp_path}/some.tar", name="some").build(), tmp_path)
    cache = FeatureCache(tmp_path, "encoder/8")
    for position in range(12):
        if position < 7:
            with pytest.raises(ValueError, match="could not be read when its features were cached"):
                cache.get("some", "image", position)
        else:
            assert cache.get("some", "image", position).shape == (4, 6)


def test_two_builders_do_the_work_once(source: WebDatasetSource, tmp_path: Path) -> None:
    calls: list[int] = []

    def slow(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        time.sleep(0.05)
        return encode(pixels)

    builders = [
        threading.Thread(target=build, args=(source, tmp_path), kwargs={"encode": slow})
        for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert calls == [5, 5, 2]
    assert FeatureCache(tmp_path, "encoder/8").is_complete("scenes", "image")


@pytest.mark.parametrize("worlds", [(2, 2), (3, 2), (4, 1)])
def test_processes_share_the_chunks_and_another_number_resumes(
    source: WebDatasetSource, tmp_path: Path, worlds: tuple[int, int]
) -> None:
    calls: list[int] = []

    def counted(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return encode(pixels)

    first, second = worlds
    build(source, tmp_path, encode=counted, rank=first - 1, world_size=first)
    cache = FeatureCache(tmp_path, "encoder/8")
    assert not cache.is_complete("scenes", "image")
    for rank in range(second):
        build(source, tmp_path, encode=counted, rank=rank, world_size=second, batch_size=3)
    assert sorted(calls) == [2, 5, 5]  # no chunk twice, and the chunk size of the first run
    build(source, tmp_path / "at-once")
    at_once = FeatureCache(tmp_path / "at-once", "encoder/8")
    for position in range(12):
        expected = at_once.get("scenes", "image", position)
        assert torch.equal(cache.get("scenes", "image", position), expected)


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
    cached = dataclasses.replace(preparer, cache=FeatureCache(tmp_path, "encoder/8"))
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
    build(source, tmp_path)
    cache = FeatureCache(tmp_path, "encoder/8")
    row = cache.get("scenes", "image", 4)
    assert len(pickle.dumps(cache)) < 1000
    assert torch.equal(pickle.loads(pickle.dumps(cache)).get("scenes", "image", 4), row)


def folder_of(folder: Path, *levels: int) -> Any:
    """A folder of images; all folders get the same source name."""
    folder.mkdir(exist_ok=True)
    for number, level in enumerate(levels):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(folder / f"{number}.png")
    return FolderConfig(path=str(folder), name="own")


def test_two_data_sets_with_one_name_have_separate_features(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", 10, 20, 30).build()
    second = folder_of(tmp_path / "b", 200, 210).build()
    for source in (first, second, first):
        build(source, tmp_path / "cache")
    found = {}
    for source in (first, second):
        cache = FeatureCache(tmp_path / "cache", "encoder/8")
        assert cache.is_complete("own", "image", source.fingerprint())
        cache.check(source, "image")
        found[source] = cache.get("own", "image", 1)
    assert found[second][0, 0] > found[first][0, 0] + 1
    assert (
        tmp_path / "cache" / "own.image.f16"
    ).exists()  # the plain name belongs to the first data
    calls: list[int] = []
    for source in (first, second):  # both caches are complete, so nothing is computed
        build(source, tmp_path / "cache", encode=lambda p: calls.append(1) or encode(p))
    assert not calls


def test_features_of_old_data_are_not_used_for_changed_data(tmp_path: Path) -> None:
    config = folder_of(tmp_path / "a", 10, 20, 30)
    build(config.build(), tmp_path / "cache")
    Image.new("RGB", (8, 8), (250, 0, 0)).save(tmp_path / "a" / "1.png")
    changed = config.build()
    cache = FeatureCache(tmp_path / "cache", "encoder/8")
    assert not cache.is_complete("own", "image", changed.fingerprint())
    build(changed, tmp_path / "cache")
    cache.check(changed, "image")
    assert cache.get("own", "image", 1)[0, 0] > 2


def test_a_reader_that_was_checked_never_reads_other_data_later(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", 10, 20, 30).build()
    second = folder_of(tmp_path / "b", 200, 210, 220).build()
    build(first, tmp_path / "cache")
    cache = FeatureCache(tmp_path / "cache", "encoder/8")
    cache.check(first, "image")
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    build(second, tmp_path / "cache")
    with pytest.raises(UsageError, match=r"no complete feature cache|made from other data"):
        cache.get("own", "image", 0)


def test_features_that_changed_places_are_never_read(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", 10, 20, 30).build()
    second = folder_of(tmp_path / "b", 200, 210, 220).build()
    for source in (first, second):
        build(source, tmp_path / "cache")
    own = f"own.image.{second.fingerprint()[:12]}"
    for ending in ("f16", "sums"):  # put the files of one data set under the name of the other
        one, other = (tmp_path / "cache" / f"{stem}.{ending}" for stem in ("own.image", own))
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    for source in (first, second):
        cache = FeatureCache(tmp_path / "cache", "encoder/8")
        cache.check(source, "image")
        with pytest.raises(UsageError, match="damaged: the row of record 0"):
            cache.get("own", "image", 0)
    build(first, tmp_path / "rows")
    for ending in ("f16", "sums"):  # swap two rows of one data set
        file = tmp_path / "rows" / f"own.image.{ending}"
        content = file.read_bytes()
        size = len(content) // 3
        file.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    cache = FeatureCache(tmp_path / "rows", "encoder/8")
    assert cache.get("own", "image", 2).isfinite().all()
    with pytest.raises(UsageError, match="damaged: the row of record 1"):
        cache.get("own", "image", 1)


@pytest.mark.parametrize("name", ["scenes.image.f16", "scenes.image.sums"])
@pytest.mark.parametrize("position", [0, 6, 11])
def test_a_flipped_bit_is_never_read_and_its_chunk_is_computed_again(
    source: WebDatasetSource, tmp_path: Path, name: str, position: int
) -> None:
    calls: list[int] = []

    def counted(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return encode(pixels)

    build(source, tmp_path, encode=counted)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 12 * position + 3] ^= 1
    (tmp_path / name).write_bytes(content)
    cache = FeatureCache(tmp_path, "encoder/8")
    for other in set(range(12)) - {position}:
        cache.get("scenes", "image", other)
    with pytest.raises(UsageError, match=rf"damaged: the row of record {position} .*again"):
        cache.get("scenes", "image", position)
    assert not cache.is_complete("scenes", "image")
    build(source, tmp_path, encode=counted)
    assert calls == [5, 5, 2, 2 if position == 11 else 5]
    build(source, tmp_path / "at-once")
    for k in range(12):
        again, expected = (
            FeatureCache(folder, "encoder/8").get("scenes", "image", k)
            for folder in (tmp_path, tmp_path / "at-once")
        )
        assert torch.equal(again, expected)


@pytest.mark.parametrize("content", [b"\0", b"\x3c", b"\x7f"])
def test_an_array_overwritten_in_its_size_stops_the_loader(
    source: WebDatasetSource,
    scenes: WebDatasetConfig,
    make_loader: MakeLoader,
    preparer: Preparer,
    tmp_path: Path,
    content: bytes,
) -> None:
    build(source, tmp_path)
    array = tmp_path / "scenes.image.f16"
    array.write_bytes(content * array.stat().st_size)
    stale = dataclasses.replace(preparer, cache=FeatureCache(tmp_path, "encoder/8"))
    entry = MixtureEntry(source=scenes, task="text_to_image")
    with pytest.raises(UsageError, match=r"scenes\.image\.f16 is damaged"):
        next(make_loader(mixture=(entry,), preparer=stale)(0))


def test_a_cache_of_an_older_version_loads_and_reports_that_it_has_no_hashes(
    source: WebDatasetSource, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    build(source, tmp_path)
    expected = FeatureCache(tmp_path, "encoder/8").get("scenes", "image", 3)
    info = json.loads((tmp_path / "scenes.image.json").read_text())
    del info["hashes"]
    (tmp_path / "scenes.image.json").write_text(json.dumps(info))
    (tmp_path / "scenes.image.sums").unlink()
    build(source, tmp_path, encode=lambda pixels: pixels / 0)  # must not be called
    cache = FeatureCache(tmp_path, "encoder/8")
    cache.check(source, "image")
    assert torch.equal(cache.get("scenes", "image", 3), expected)
    assert capsys.readouterr().err.count("without hashes") == 1


def test_a_cache_with_lost_hashes_does_not_count_as_an_older_version(
    source: WebDatasetSource, tmp_path: Path
) -> None:
    build(source, tmp_path)
    (tmp_path / "scenes.image.sums").unlink()
    assert not FeatureCache(tmp_path, "encoder/8").is_complete("scenes", "image")


def test_records_without_an_image_are_named_with_their_reason(
    tmp_path: Path, write_tar: WriteTar
) -> None:
    good = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(good, "PNG")
    members = {f"{k}.png": b"broken" if k in (2, 9) else good.getvalue() for k in range(12)}
    write_tar(tmp_path / "some.tar", members)
    some = WebDatasetConfig(path=f"{tmp_path}/some.tar", name="some").build()
    build(some, tmp_path)
    cache = FeatureCache(tmp_path, "encoder/8")
    cache.check(some, "image")
    notes = cache.left_out(some, "image")
    assert {position: note["key"] for position, note in notes.items()} == {2: "2", 9: "9"}
    with pytest.raises(ValueError, match=f"were cached: {notes[2]['reason']}"):
        cache.get("some", "image", 2)


def test_features_that_do_not_fit_on_the_disk_are_refused_before_they_are_computed(
    source: WebDatasetSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(source, tmp_path / "at-once")
    need = sum(
        (tmp_path / "at-once" / f"scenes.image.{end}").stat().st_size for end in ("f16", "sums")
    )
    for free in (need - 1, need):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if free < need:
            with pytest.raises(UsageError, match=r"features of 12 images .* are free on the disk"):
                build(source, tmp_path / "cache")
            assert not (tmp_path / "cache" / "scenes.image.f16").exists()
        else:
            build(source, tmp_path / "cache")
