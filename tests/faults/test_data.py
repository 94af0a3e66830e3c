"""All kinds of damaged data: counted, named and replaced, or read correctly."""

import io
import itertools
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.data.collate import Preparer
from blip3o.data.loader import Loader
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.text.chat import ChatConfig, ChatTemplate
from blip3o.text.tokenizer import train_tokenizer

PX, RECORDS, DAMAGED = 16, 24, "0005"
RED = (250, 10, 10)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (PX, PX), RED).convert(mode)


def bomb() -> bytes:
    """Returns a small file whose header claims 60,000 x 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + crc + encode(red())[33:]


def sixteen_bits() -> bytes:
    return encode(Image.fromarray(np.full((PX, PX), 40_000, dtype=np.uint16)))


def turned() -> bytes:
    """Red above and blue below, stored upside down with an EXIF orientation."""
    image = red()
    image.paste((10, 10, 250), (0, 0, PX, PX // 2))
    exif = Image.Exif()
    exif[0x0112] = 3
    return encode(image, "JPEG", quality=95, exif=exif)


def animated() -> bytes:
    others = [Image.new("RGB", (PX, PX), "blue")]
    return encode(red(), "GIF", save_all=True, append_images=others)


BAD_IMAGES = {
    "truncated": encode(red().resize((90, 90)), "JPEG")[:400],
    "0 bytes": b"",
    "wrong magic": b"GIF8" + encode(red())[4:],
    "bomb": bomb(),
    "text": b"<html>404 Not Found</html>",
}
GOOD_IMAGES = {
    "CMYK": encode(red("CMYK"), "JPEG", quality=95),
    "alpha": encode(red("RGBA")),
    "palette": encode(red().quantize(2)),
    "EXIF": turned(),
    "animated": animated(),
}


def write(path: Path, image: bytes, fields: bytes | None = None, text: bytes = b"") -> None:
    """Writes a shard in which one record has the given image, and fields or text."""
    plain = encode(red())
    with tarfile.open(path, "w") as tar:
        for number in range(RECORDS):
            key = f"{number:04d}"
            is_it = key == DAMAGED
            shown = fields if is_it and fields else json.dumps({"caption": f"cat {key}"}).encode()
            members = [("png", image if is_it else plain)]
            members.append(("txt", text) if is_it and text else ("json", shown))
            for suffix, data in members:
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def preparer() -> Preparer:
    config = ChatConfig(system=None, generate="draw: {caption}", edit="edit: {instruction}")
    tokenizer = train_tokenizer(("draw: cat 0123456789", "user\n", "assistant\n") * 3, 300)
    chat = ChatTemplate(tokenizer, config, num_image_tokens=2)
    return Preparer(chat=chat, image_px=PX, max_text_tokens=64)


@pytest.fixture
def load(preparer: Preparer, tmp_path: Path) -> Callable[..., Loader]:
    def make(*, salvage: bool = False, workers: int = 0, rank: int = 0, world: int = 1) -> Loader:
        source = WebDatasetConfig(path=f"{tmp_path}/*.tar", name="data", salvage=salvage)
        entry = MixtureEntry(source=source, task="text_to_image")
        return Loader(
            DataConfig(mixture=(entry,), num_workers=workers, bad_sample_limit=0.5),
            preparer,
            seed=0,
            global_batch_size=8,
            micro_batch_size=8,
            quarantine=tmp_path / "quarantine.jsonl",
            rank=rank,
            world_size=world,
        )

    return make


def epoch(loader: Loader) -> list[tuple[list[int], list[list[int]]]]:
    steps = itertools.islice(loader(0), RECORDS // 8)
    return [(b.indices.tolist(), b.input_ids.tolist()) for step in steps for b in step]


def quarantined(tmp_path: Path) -> list[dict[str, str]]:
    file = tmp_path / "quarantine.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_counted_named_and_replaced(
    load: Callable[..., Loader], tmp_path: Path, name: str
) -> None:
    write(tmp_path / "a.tar", BAD_IMAGES[name])
    loader = load()
    taken = epoch(loader)
    assert (loader.num_bad, loader.num_seen) == (1, RECORDS)
    (line,) = quarantined(tmp_path)
    assert (line["source"], line["key"]) == ("data", DAMAGED)
    assert line["reason"]
    assert epoch(load()) == taken


@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_an_odd_image_is_read_as_a_viewer_shows_it(
    load: Callable[..., Loader], tmp_path: Path, name: str
) -> None:
    write(tmp_path / "a.tar", GOOD_IMAGES[name])
    loader = load()
    steps = itertools.islice(loader(0), RECORDS // 8)
    pixels = [batch.target_pixels for step in steps for batch in step]
    expected = (np.array(RED) / 127.5 - 1)[:, None]
    for image in (one for batch in pixels if batch is not None for one in batch):
        upper = image[:, : PX // 2 - 1].flatten(1).numpy()
        assert np.abs(upper - expected).max() < 0.25
    assert loader.num_bad == 0


def test_sixteen_bits_are_read(load: Callable[..., Loader], tmp_path: Path) -> None:
    write(tmp_path / "a.tar", sixteen_bits())
    loader = load()
    epoch(loader)
    assert loader.num_bad == 0


@pytest.mark.parametrize(
    ("fields", "text"),
    [(b"{", b""), (b'{"caption": "\xff\xfe"}', b""), (None, b"\xff\xfe cat"), (b"[1]", b"")],
)
def test_bad_text_is_a_bad_sample(
    load: Callable[..., Loader], tmp_path: Path, fields: bytes | None, text: bytes
) -> None:
    write(tmp_path / "a.tar", encode(red()), fields, text)
    loader = load()
    epoch(loader)
    assert loader.num_bad == 1
    assert quarantined(tmp_path)[0]["reason"]


def offset_of(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_shard_is_refused_or_salvaged(
    load: Callable[..., Loader], tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tar"
    write(path, encode(red()))
    data = bytearray(path.read_bytes())
    place = offset_of(path, "0016.png")
    data[place + 2] ^= 4
    path.write_bytes(data if damage == "flipped" else data[: place + 700])
    with pytest.raises(UsageError, match=rf"a\.tar is damaged or not a plain tar: .*byte {place}"):
        load()
    loader = load(salvage=True)
    assert f"at byte {place}" in capsys.readouterr().err
    epoch(loader)
    # A cut loses everything after it; a bad header loses only one record's image.
    assert loader.num_bad <= (2 if damage == "flipped" else 0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "another tar"])
def test_damage_after_indexing_gives_bad_samples(
    load: Callable[..., Loader], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "a.tar"
    write(path, encode(red()))
    loader = load()
    data = bytearray(path.read_bytes())
    place = offset_of(path, "0016.png")
    if damage == "flipped":
        data[place + 2] ^= 4
    with path.open("r+b") as file:  # in place, because the loader has the file open
        if damage == "cut":
            file.truncate(offset_of(path, "0023.png"))
        else:
            file.write(data if damage == "flipped" else data[2 * 1024 :] + data[: 2 * 1024])
    if damage == "another tar":
        with pytest.raises(UsageError, match=r"does not hold record .* where its index says"):
            epoch(loader)
    else:
        epoch(loader)
        key = "0016" if damage == "flipped" else "0023"
        assert {line["key"] for line in quarantined(tmp_path)} <= {key, "?"}
        assert loader.num_bad == 1


def test_fewer_shards_than_processes_and_workers(
    load: Callable[..., Loader], tmp_path: Path
) -> None:
    write(tmp_path / "a.tar", encode(red()))
    whole = {index for indices, _ in epoch(load()) for index in indices}
    shares = [
        {index for indices, _ in epoch(load(workers=2, rank=rank, world=4)) for index in indices}
        for rank in range(4)
    ]
    assert sorted(index for share in shares for index in share) == sorted(whole)
