"""TIFF images of every depth, byte order and sign; malicious directories."""

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.generate.requests import open_input
from blip3o.imaging.load import open_image, open_pil, read_header

WIDTH, HEIGHT = 13, 5


def ramp(bits: int) -> np.ndarray:
    return np.linspace(0, (1 << bits) - 1, WIDTH * HEIGHT).astype(np.int64).reshape(HEIGHT, WIDTH)


def packed(rows: np.ndarray, bits: int, order: str, kind: str = "u") -> bytes:
    """Packs rows of numbers [height, numbers per row] as in a TIFF file."""
    if bits in {8, 16, 32}:
        return rows.astype(f"{order}{kind}{bits // 8}").tobytes()
    if bits == 24:
        size = [slice(0, 3), slice(1, 4)][order == ">"]
        return b"".join(
            int(n).to_bytes(4, "big" if order == ">" else "little")[size] for n in rows.flat
        )
    ones = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    flat = ones.astype(np.uint8).reshape(len(rows), -1)
    return np.packbits(flat, axis=1).tobytes()


def tags(bits: int, photometric: int = 1, samples: int = 1, **more: Any) -> dict[int, Any]:
    named = {"format": 339, "planar": 284, "extra": 338, "predictor": 317, "compression": 259}
    named |= {"orientation": 274, "fill": 266}
    return {
        256: ("H", (WIDTH,)),
        257: ("H", (HEIGHT,)),
        258: ("H", (bits,) * samples),
        259: ("H", (1,)),
        262: ("H", (photometric,)),
        277: ("H", (samples,)),
        278: ("H", (HEIGHT,)),
        **{named[name]: ("H", value) for name, value in more.items()},
    }


def levels(values: np.ndarray, most: float) -> np.ndarray:
    return np.rint(values * 255 / most).astype(int)


def grey(data: bytes) -> np.ndarray:
    image = np.asarray(open_image(data)).astype(int)
    assert (image == image[..., :1]).all()
    return image[..., 0]


@pytest.mark.parametrize("bits", [2, 4, 8, 10, 12, 14, 16, 24, 32])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_of_every_depth(
    make_tiff: Callable[..., bytes], bits: int, order: str, photometric: int
) -> None:
    values = ramp(bits)
    data = make_tiff(packed(values, bits, order), tags(bits, photometric), order)
    wanted = levels(values, (1 << bits) - 1)
    wanted = wanted if photometric else 255 - wanted
    assert np.abs(grey(data) - wanted).max() <= (0 if bits != 32 else 1)


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_an_image_that_pillow_opened_is_scaled_by_its_file(
    make_tiff: Callable[..., bytes], bits: int
) -> None:
    values = ramp(bits)
    data = make_tiff(packed(values, bits, "<"), tags(bits))
    given = np.asarray(open_input(Image.open(io.BytesIO(data))))[..., 0].astype(int)
    assert np.abs(given - levels(values, (1 << bits) - 1)).max() <= 1
    white = make_tiff(packed(values, 16, "<"), tags(16, 0)) if bits == 16 else None
    if white is not None:
        given = np.asarray(open_input(Image.open(io.BytesIO(white))))[..., 0].astype(int)
        assert np.array_equal(given, 255 - levels(values, 65535))


@pytest.mark.parametrize("compression", [8, 32946, 5, 32773])
@pytest.mark.parametrize(("predictor", "bits"), [(1, 12), (1, 16), (2, 16)])
def test_compressed_grey(
    make_tiff: Callable[..., bytes], compression: int, predictor: int, bits: int
) -> None:
    values = ramp(bits)
    stored = np.diff(values, axis=1, prepend=0) if predictor == 2 else values
    raw = packed(stored, bits, "<")
    image = Image.frombytes("L", (len(raw) // HEIGHT, HEIGHT), raw)
    if compression in {8, 32946}:
        body = zlib.compress(raw)
    else:
        file = io.BytesIO()
        kind = {5: "tiff_lzw", 32773: "packbits"}[compression]
        image.save(file, "TIFF", compression=kind)
        with Image.open(file) as written:
            tagged: Any = written
            start, size = tagged.tag_v2[273][0], tagged.tag_v2[279][0]
        body = file.getvalue()[start : start + size]
    more = tags(bits, compression=(compression,), predictor=(predictor,))
    assert np.array_equal(grey(make_tiff(body, more)), levels(values, (1 << bits) - 1))


@pytest.mark.parametrize("bits", [10, 12, 16, 32])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
def test_colors_of_every_depth(
    make_tiff: Callable[..., bytes], bits: int, planar: int, order: str
) -> None:
    values = np.stack([ramp(bits), ramp(bits)[::-1], ramp(bits) // 2], axis=2)
    if planar == 1:
        data = make_tiff(
            packed(values.reshape(HEIGHT, -1), bits, order), tags(bits, 2, 3, planar=(1,)), order
        )
    else:
        parts = [packed(values[..., plane], bits, order) for plane in range(3)]
        data = _separate(make_tiff, parts, tags(bits, 2, 3, planar=(2,)), order)
    read = np.asarray(open_image(data)).astype(int)
    assert np.abs(read - levels(values, (1 << bits) - 1)).max() <= 1


def _separate(
    make_tiff: Callable[..., bytes], parts: list[bytes], more: dict[int, Any], order: str
) -> bytes:
    """Returns a TIFF of several strips: adds their lists to a file of one strip."""
    data = bytearray(make_tiff(b"".join(parts), more, order))
    starts = [8 + sum(map(len, parts[:number])) for number in range(len(parts))]
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    for line in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(order + "H", data, line)
        if tag in {273, 279}:
            numbers = starts if tag == 273 else [len(one) for one in parts]
            struct.pack_into(order + "II", data, line + 4, len(parts), len(data))
            data += struct.pack(f"{order}{len(parts)}I", *numbers)
    return bytes(data)


def test_alpha_of_deep_images(make_tiff: Callable[..., bytes]) -> None:
    values = np.stack([ramp(16), np.full_like(ramp(16), 0)], axis=2)
    data = make_tiff(packed(values.reshape(HEIGHT, -1), 16, "<"), tags(16, 1, 2, extra=(2,)))
    assert (grey(data) == 255).all()
    ignored = make_tiff(packed(values.reshape(HEIGHT, -1), 16, "<"), tags(16, 1, 2, extra=(0,)))
    assert np.array_equal(grey(ignored), levels(values[..., 0], 65535))
    premultiplied = np.stack([ramp(16) // 4, np.full_like(ramp(16), 32768)], axis=2)
    data = make_tiff(
        packed(premultiplied.reshape(HEIGHT, -1), 16, ">"), tags(16, 1, 2, extra=(1,)), ">"
    )
    assert np.abs(grey(data) - (levels(ramp(16), 65535 * 2) * 128 // 255 + 127)).max() <= 2


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("order", ["<", ">"])
def test_zero_is_black_where_numbers_are_signed(
    make_tiff: Callable[..., bytes], bits: int, order: str
) -> None:
    values = ramp(bits - 1)
    data = make_tiff(packed(values, bits, order, "i"), tags(bits, format=(2,)), order)
    assert np.abs(grey(data) - levels(values, (1 << (bits - 1)) - 1)).max() <= 1
    below = make_tiff(packed(values - 5, bits, order, "i"), tags(bits, format=(2,)), order)
    with pytest.raises(UsageError, match="negative"):
        open_image(below)


def test_a_file_may_state_its_own_range(make_tiff: Callable[..., bytes]) -> None:
    values = ramp(12)
    more = {**tags(16), 341: ("H", (4095,))}
    assert np.array_equal(grey(make_tiff(packed(values, 16, "<"), more)), levels(values, 4095))
    signed = {**tags(16, format=(2,)), 340: ("h", (-1000,)), 341: ("h", (1000,))}
    wide = np.linspace(-1000, 1000, WIDTH * HEIGHT).astype(np.int64).reshape(HEIGHT, WIDTH)
    data = make_tiff(packed(wide, 16, "<", "i"), signed)
    assert np.abs(grey(data) - levels(wide + 1000, 2000)).max() <= 1
    color = np.repeat(values[..., None], 3, axis=2).reshape(HEIGHT, -1)
    more = {**tags(16, 2, 3), 341: ("H", (4095,) * 3)}
    assert np.array_equal(grey(make_tiff(packed(color, 16, "<"), more)), levels(values, 4095))
    nonsense = {**tags(16), 341: ("f", (float("nan"),))}
    assert np.array_equal(
        grey(make_tiff(packed(ramp(16), 16, "<"), nonsense)), levels(ramp(16), 65535)
    )


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("bits", [8, 16])
def test_deep_images_are_turned_upright(
    make_tiff: Callable[..., bytes], orientation: int, bits: int
) -> None:
    values = ramp(bits)
    data = make_tiff(packed(values, bits, "<"), tags(bits, orientation=(orientation,)))
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    assert np.array_equal(grey(data), np.rot90(levels(values, (1 << bits) - 1), turns))


@pytest.mark.parametrize("bits", [12, 16])
def test_tiles_of_deep_images(make_tiff: Callable[..., bytes], bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (32, 48))
    tiles = [values[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16, 32)]
    parts = [packed(tile, bits, "<") for tile in tiles]
    more = {**tags(bits), 256: ("H", (40,)), 257: ("H", (25,))}
    data = bytearray(_separate(make_tiff, parts, more, "<"))
    for old, new in ((273, 324), (279, 325), (278, 323)):
        at = data.index(struct.pack("<H", old), int.from_bytes(data[4:8], "little"))
        struct.pack_into("<H", data, at, new)
        if new == 323:
            struct.pack_into("<H", data, at + 8, 16)
    at = data.index(struct.pack("<HHI", 277, 3, 1), int.from_bytes(data[4:8], "little"))
    struct.pack_into("<HHIH", data, at, 322, 3, 1, 16)  # one sample per pixel is the default
    assert np.array_equal(grey(bytes(data)), levels(values[:25, :40], (1 << bits) - 1))


@pytest.mark.parametrize("kind", ["f", "d"])
def test_floating_point_is_refused_in_one_line(make_tiff: Callable[..., bytes], kind: str) -> None:
    bits = {"f": 32, "d": 64}[kind]
    raw = np.zeros(WIDTH * HEIGHT, f"<{kind}").tobytes()
    with pytest.raises(UsageError, match="floating point"):
        open_image(make_tiff(raw, tags(bits, format=(3,))))


def test_an_unknown_layout_is_named(make_tiff: Callable[..., bytes]) -> None:
    raw = np.zeros(WIDTH * HEIGHT * 5, np.uint8).tobytes()
    with pytest.raises(UsageError, match=r"TIFF of 5 x 8-bit unsigned numbers.*photometric 5"):
        open_image(make_tiff(raw, tags(8, 5, 5, extra=(2,))))


def test_a_truncated_directory_is_called_damaged(
    make_tiff: Callable[..., bytes],
) -> None:
    data = make_tiff(bytes(WIDTH * HEIGHT * 3), {**tags(8, 2, 3), 270: ("B", (1,) * 40)})
    for cut in (1, 30, 60):
        with pytest.raises(UsageError, match="damaged or truncated"):
            open_image(data[:-40][:-cut])


def test_an_image_without_pixels_is_named(make_tiff: Callable[..., bytes]) -> None:
    with pytest.raises(UsageError, match="0 x 5 pixels"):
        open_image(make_tiff(b"", {**tags(8), 256: ("H", (0,))}))


COLOR = (120, 200, 80)


@pytest.mark.parametrize(("photometric", "colors"), [(0, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("extra", "more", "alpha"),
    [
        ((), (), 255),
        ((0,), (9,), 255),
        ((1,), (128,), 128),
        ((2,), (128,), 128),
        ((2, 0), (128, 9), 128),
        ((0, 2), (9, 128), 128),
        ((0, 1), (9, 0), 0),
    ],
)
def test_numbers_in_addition_to_the_colors(
    make_tiff: Callable[..., bytes],
    photometric: int,
    colors: int,
    bits: int,
    extra: tuple[int, ...],
    more: tuple[int, ...],
    alpha: int,
) -> None:
    light = np.array(COLOR[:colors])
    stored = light * alpha // 255 if 1 in extra else light
    stored = 255 - stored if photometric == 0 else stored
    pixel = np.array([*stored, *more]) * ((1 << bits) - 1) // 255
    raw = packed(np.tile(pixel, (HEIGHT, WIDTH)), bits, "<")
    named = {"extra": extra} if extra else {}
    read = open_image(make_tiff(raw, tags(bits, photometric, len(pixel), **named)))
    if photometric == 0 and 1 in extra:
        return  # the format does not define premultiplied inverted light
    wanted = light * alpha / 255 + 255 - alpha
    assert np.abs(np.asarray(read)[0, 0] - wanted).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [8, 9])
def test_lab_of_every_depth(
    make_tiff: Callable[..., bytes], bits: int, order: str, photometric: int
) -> None:
    lab = np.array([138, 80, 67]) * (1 << bits - 8)  # sRGB (255, 0, 0), nearly
    lab[1:] += 1 << bits - 1 if photometric == 9 else 0
    raw = packed(np.tile(lab, (HEIGHT, WIDTH)), bits, order)
    read = open_image(make_tiff(raw, tags(bits, photometric, 3), order))
    assert np.abs(np.asarray(read)[0, 0] - np.array([255, 0, 0])).max() <= 14


def test_signed_numbers_of_8_bits_are_read_like_those_of_16(
    make_tiff: Callable[..., bytes],
) -> None:
    signed = {**tags(8), 339: ("H", (2,))}
    assert grey(make_tiff(bytes([127]) * WIDTH * HEIGHT, signed))[0, 0] == 255
    with pytest.raises(UsageError, match="negative"):
        open_image(make_tiff(bytes([200]) * WIDTH * HEIGHT, signed))


@pytest.mark.parametrize("factor", [1, 257])
def test_a_palette_of_8_bits_is_not_black(make_tiff: Callable[..., bytes], factor: int) -> None:
    palette = tuple(level * factor for level in range(256)) * 3
    data = make_tiff(bytes([200]) * WIDTH * HEIGHT, {**tags(8, 3), 320: ("H", palette)})
    assert grey(data)[0, 0] == 200
    assert np.asarray(open_pil(Image.open(io.BytesIO(data))))[0, 0, 0] == 200


def as_big(data: bytes, order: str) -> bytes:
    """Returns a TIFF file converted to BigTIFF."""
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    sizes = {1: 1, 3: 2, 4: 4}
    body, lines = data[8:], b""
    for at in range(start + 2, start + 2 + count * 12, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, at)
        size = sizes[kind] * number
        (place,) = struct.unpack_from(order + "I", data, at + 8)
        content = data[place : place + size] if size > 4 else data[at + 8 : at + 8 + size]
        if tag in {273, 279}:  # the image starts 8 bytes later, and offsets have 64 bits
            numbers = np.frombuffer(content, order + "u4") + (8 if tag == 273 else 0)
            kind, content = 16, numbers.astype(order + "u8").tobytes()
        line = content.ljust(8, b"\0")
        if len(content) > 8:
            line = struct.pack(order + "Q", 16 + len(body))
            body += content
        lines += struct.pack(order + "HHQ", tag, kind, number) + line
    head = data[:2] + struct.pack(order + "HHHQ", 43, 8, 0, 16 + len(body))
    return head + body + struct.pack(order + "Q", count) + lines + b"\0" * 8


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_big_tiff_of_either_order(make_tiff: Callable[..., bytes], order: str, bits: int) -> None:
    plain = make_tiff(packed(ramp(bits), bits, order), tags(bits), order)
    assert np.array_equal(grey(as_big(plain, order)), grey(plain))


@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_of_an_image_that_pillow_opened(make_tiff: Callable[..., bytes], order: str) -> None:
    planes = np.concatenate([ramp(16), ramp(16)[::-1], ramp(16) // 2])
    data = make_tiff(packed(planes, 16, order), tags(16, 2, 3, planar=(2,)), order)
    data = listed_thrice(data, order)
    given = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(open_pil(given)), np.asarray(open_image(data)))
    given.info["note"] = "changed by its owner, whose image it is now"
    assert open_pil(given).size == (WIDTH, HEIGHT)


def listed_thrice(data: bytes, order: str) -> bytes:
    """Returns a TIFF of one strip split into three strips."""
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    result = bytearray(data)
    for at in range(start + 2, start + 2 + count * 12, 12):
        tag, _, _, value = struct.unpack_from(order + "HHII", data, at)
        third = 2 * WIDTH * HEIGHT
        strips = [value + third * k for k in range(3)] if tag == 273 else [third] * 3
        if tag in {273, 279}:
            struct.pack_into(order + "II", result, at + 4, 3, len(result))
            result += struct.pack(order + "3I", *strips)
    return bytes(result)


@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_deep_file_is_refused(
    make_tiff: Callable[..., bytes], bits: int, share: float
) -> None:
    whole = make_tiff(packed(ramp(bits), bits, "<"), tags(bits))
    # The directory comes first, so a truncated file lacks only pixels.
    raw = packed(ramp(bits), bits, "<")
    data = whole[:8] + whole[8 + len(raw) + len(raw) % 2 :]
    moved = bytearray(data + raw)
    struct.pack_into("<I", moved, 4, 8)
    struct.pack_into("<I", moved, data.index(struct.pack("<HHI", 273, 4, 1)) + 8, len(data))
    assert grey(bytes(moved)).shape == (HEIGHT, WIDTH)
    with pytest.raises(UsageError):
        open_image(bytes(moved[: len(data) + int(len(raw) * share)]))


def test_damaged_metadata_and_further_pages_are_tolerated(make_tiff: Callable[..., bytes]) -> None:
    notes = {
        270: ("B", (255,) * 50),
        305: ("I", (1, 2)),
        34665: ("I", (0xFFFFFFF0,)),
        700: ("B", (0,)),
    }
    for bits in (8, 16):
        data = bytearray(make_tiff(packed(ramp(bits), bits, "<"), {**tags(bits), **notes}))
        (at,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, at)
        struct.pack_into("<I", data, at + 2 + 12 * count, at)  # the next page is this one
        assert np.array_equal(grey(bytes(data)), levels(ramp(bits), (1 << bits) - 1))


def test_a_directory_of_thousands_of_large_tags_takes_little_memory(
    make_tiff: Callable[..., bytes],
) -> None:
    raw = packed(ramp(8), 8, "<")
    filler = b"\0" * 1_000_000
    plain = tags(8)
    data = bytearray(make_tiff(raw, plain, "<", filler))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    lines = data[at + 2 : at + 2 + 12 * count]
    for tag in range(40_000, 50_700):
        lines += struct.pack("<HHII", tag, 1, len(filler), 8)
    struct.pack_into("<I", data, 4, len(data))
    data += struct.pack("<H", len(lines) // 12) + lines + b"\0" * 4
    tracemalloc.start()
    assert open_image(bytes(data)).size == (WIDTH, HEIGHT)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_an_image_whose_strips_are_listed_repeatedly_is_read_once(
    make_tiff: Callable[..., bytes],
) -> None:
    raw = b"\7" * (1000 * 1000)
    more = {**tags(8), 256: ("H", (1000,)), 257: ("H", (1000,)), 278: ("H", (999,))}
    data = bytearray(make_tiff(raw, more))
    (at,) = struct.unpack_from("<I", data, 4)
    for tag, value in ((273, 8), (279, 999_000)):
        line = data.index(struct.pack("<H", tag), at)
        struct.pack_into("<II", data, line + 4, 20_000, len(data))
        data += struct.pack("<I", value) * 20_000
    start = time.monotonic()
    assert open_image(bytes(data)).size == (1000, 1000)
    assert time.monotonic() - start < 1


def test_missing_strips_are_called_damage(make_tiff: Callable[..., bytes]) -> None:
    more = {**tags(8), 278: ("H", (1,))}
    with pytest.raises(UsageError, match="lists 1 of 5 strips"):
        open_image(make_tiff(packed(ramp(8), 8, "<"), more))


@pytest.mark.parametrize("version", [42, 43])
def test_an_endless_directory_is_refused(version: int) -> None:
    for count in (b"\xff\xff", b"\xff" * 8, b"\0" * 8):
        head = b"II" + struct.pack("<H", version)
        rest = struct.pack("<I", 8) if version == 42 else struct.pack("<HHQ", 8, 0, 16)
        with pytest.raises(UsageError):
            open_image(head + rest + count)


def test_the_header_of_a_file_can_be_read(make_tiff: Callable[..., bytes]) -> None:
    header = read_header(make_tiff(packed(ramp(12), 12, ">"), tags(12, 0), ">"))
    assert (header.format, header.size) == ("TIFF", (WIDTH, HEIGHT))
