"""Metadata of image files: it is applied to the image, and damage in it is tolerated."""

import io
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.generate.requests import open_input
from blip3o.imaging.load import open_image, read_header

RED = (200, 30, 30)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def noise(width: int = 24, height: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


IMAGE = noise()
PLAIN = encoded(Image.fromarray(IMAGE))


def inserted(piece: bytes, at: int = 33) -> bytes:
    return PLAIN[:at] + piece + PLAIN[at:]


def spoiled(piece: bytes) -> bytes:
    return piece[:-1] + bytes([piece[-1] ^ 255])


BEFORE_END = len(PLAIN) - 12
BIG = zlib.compress(b"\0" * 3_000_000)
SIDE_CHUNKS: dict[str, bytes] = {
    "2 MB of packed text": chunk(b"zTXt", b"prompt\0\0" + BIG),
    "2 MB of packed international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + BIG),
    "much text": chunk(b"tEXt", b"a\0" + b"x" * 200_000) * 40,
    "text without a key": chunk(b"tEXt", b""),
    "text of another packing": chunk(b"zTXt", b"a\0\7junk"),
    "text that is not packed": chunk(b"zTXt", b"a\0\0junk"),
    "bad checksum of a text": spoiled(chunk(b"tEXt", b"a\0b")),
    "bad checksum of a time": spoiled(chunk(b"tIME", b"\0" * 7)),
    "short density": chunk(b"pHYs", b"\0\0"),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short rendering intent": chunk(b"sRGB", b""),
    "short primaries": chunk(b"cHRM", b"\0" * 5),
    "profile of another packing": chunk(b"iCCP", b"name\0\1junk"),
    "profile of nothing": chunk(b"iCCP", b""),
    "profile without end": chunk(b"iCCP", b"name\0\0" + zlib.compress(b"\0" * 20_000_000)),
    "bad checksum of a profile": spoiled(chunk(b"iCCP", b"name\0\0" + zlib.compress(b"x"))),
    "damaged EXIF": chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40),
    "private": chunk(b"prVt", b"\xff" * 100),
    "short transparency": chunk(b"tRNS", b"\0"),
    "transparency of another kind": chunk(b"tRNS", b"\0" * 256),
    "bad checksum of a transparency": spoiled(chunk(b"tRNS", struct.pack(">3H", *IMAGE[0, 0]))),
    "animation of nothing": chunk(b"acTL", b""),
    "frames out of order": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"\xff" * 26),
    "frame outside": chunk(b"acTL", struct.pack(">II", 1, 0))
    + chunk(b"fcTL", struct.pack(">7IHHBB", 0, 999, 999, 0, 0, 0, 0, 1, 1, 0, 0)[:26]),
}


@pytest.mark.parametrize("name", SIDE_CHUNKS)
def test_no_optional_chunk_makes_a_png_unreadable(name: str) -> None:
    for data in (inserted(SIDE_CHUNKS[name]), inserted(SIDE_CHUNKS[name], BEFORE_END)):
        assert np.array_equal(np.asarray(open_image(data)), IMAGE)


def test_a_truncated_optional_chunk_is_tolerated() -> None:
    data = PLAIN[:BEFORE_END] + chunk(b"tEXt", b"a\0" + b"x" * 100)[:50]
    assert np.array_equal(np.asarray(open_image(data)), IMAGE)


def test_damage_of_the_image_itself_is_still_refused() -> None:
    at = PLAIN.index(b"IDAT")
    for data in (
        PLAIN[: at + 30],
        PLAIN[: at + 20] + bytes([PLAIN[at + 20] ^ 255]) + PLAIN[at + 21 :],
        PLAIN[:20] + b"\x7f" + PLAIN[21:],
        PLAIN[: at - 4],
    ):
        with pytest.raises(UsageError, match="image"):
            open_image(data)


@pytest.mark.parametrize("key", [b"XML:com.adobe.xmp", b"Raw profile type exif"])
def test_texts_of_a_png_can_hold_its_orientation(key: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    if key.startswith(b"Raw"):
        text = f"\nexif\n{len(block):8d}\n{block.hex()}\n".encode()
        piece = chunk(b"zTXt", key + b"\0\0" + zlib.compress(text))
    else:
        piece = chunk(b"iTXt", key + b'\0\0\0\0\0<x tiff:Orientation="6"/>')
    assert open_image(inserted(piece)).size == (16, 24)


def segment(code: int, body: bytes) -> bytes:
    return bytes([255, code]) + struct.pack(">H", len(body) + 2) + body


JPEG = encoded(Image.fromarray(IMAGE), "JPEG", quality=95)
SEGMENTS: dict[str, bytes] = {
    "damaged EXIF": segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "empty EXIF": segment(0xE1, b"Exif\0\0"),
    "EXIF of loops": segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\4\0\0\0\1\0\0\0\x08"),
    "short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "profile of a missing part": segment(0xE2, b"ICC_PROFILE\0\1\3abc"),
    "profile of a part 0": segment(0xE2, b"ICC_PROFILE\0\0\0abc"),
    "damaged MPF": segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff"),
    "MPF of nothing": segment(0xE2, b"MPF\0"),
    "damaged Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\4\4\xff\xff"),
    "long comments": segment(0xFE, b"x" * 65_000) * 20,
    "short JFIF": segment(0xE0, b"JFIF"),
    "XMP that is no text": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"\xff" * 200),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_no_metadata_makes_a_jpeg_unreadable(name: str) -> None:
    data = JPEG[:2] + SEGMENTS[name] + JPEG[2:]
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(open_image(JPEG)))


def test_the_first_image_of_a_jpeg_is_read_whatever_follows_it() -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in (RED, (0, 0, 255))]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    for one in (data, data[: data.rindex(b"\xff\xd8") + 40]):
        assert np.abs(np.asarray(open_image(one)).astype(int) - RED).max() <= 4
    assert read_header(data).format == "JPEG"


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused() -> None:
    data = encoded(Image.fromarray(IMAGE), "JPEG", progressive=True)
    assert open_image(data).size == (24, 16)
    scan = data.rindex(b"\xff\xda")
    start = time.monotonic()
    with pytest.raises(UsageError, match="more than 50 scans"):
        open_image(data[:scan] + data[scan:-2] * 5000 + b"\xff\xd9")
    assert time.monotonic() - start < 1


def webp(*pieces: tuple[bytes, bytes], flags: int = 0x0C) -> bytes:
    still = encoded(Image.fromarray(IMAGE), "WEBP", lossless=True)
    header = bytes([flags, 0, 0, 0]) + (23).to_bytes(3, "little") + (15).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + header + still[12:]
    for kind, content in pieces:
        body += kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize(
    "data",
    [
        webp((b"EXIF", b"\xff" * 11), (b"XMP ", b"\xff" * 7)),
        webp((b"EXIF", b"Exif\0\0MM\0*\xff\xff\xff\xff")),
        webp((b"ICCP", b"junk"), flags=0x20),
        webp((b"junk", b"x" * 33)),
        webp((b"EXIF", b"x" * 400))[:-300],
        webp(flags=0x0C),
    ],
)
def test_no_metadata_makes_a_webp_unreadable(data: bytes) -> None:
    assert np.array_equal(np.asarray(open_image(data)), IMAGE)


def gif(frames: int, between: bytes = b"") -> bytes:
    one = encoded(Image.new("P", (8, 8)), "GIF")
    start = one.index(b",", 13 + 3 * 2 ** ((one[10] & 7) + 1))
    return one[:start] + between + one[start:-1] * frames + b";"


def test_thousands_of_frames_and_comments_are_skipped_quickly() -> None:
    comment = b"!\xfe" + b"\xff" + b"x" * 255
    start = time.monotonic()
    assert open_image(gif(50_000)).size == (8, 8)
    assert open_image(gif(1, comment + b"\xffyyy".ljust(256, b"y") * 40_000 + b"\0")).size == (8, 8)
    with pytest.raises(UsageError):
        open_image(gif(1, comment + b"\xff".ljust(256, b"y") * 40_000)[:5_000_000])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "AVIF"])
def test_the_first_of_many_frames_is_decoded_alone(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), (n * 2, 0, 0)) for n in range(60)]
    frames[0].paste(RED, (0, 0, 64, 64))
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(open_image(data)).astype(int) - RED).max() <= 6


DEPTHS = [("grey", depth) for depth in (1, 2, 4, 8, 16)] + [("rgb", 8), ("rgb", 16)]


@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
@pytest.mark.parametrize("is_interlaced", [False, True])
def test_one_transparent_color_at_every_depth(
    make_png: Callable[..., bytes], kind: str, depth: int, is_interlaced: bool
) -> None:
    most = (1 << depth) - 1
    clear, near = (most // 2, most // 2 + 1) if depth > 1 else (0, 1)
    rows = [[clear, near, most, clear], [near, clear, clear, most]]
    samples = 1 if kind == "grey" else 3
    values = np.repeat(np.array(rows)[..., None], samples, axis=2)
    key = struct.pack(">H", clear) * samples
    data = make_png(values, depth, color=0 if kind == "grey" else 2, key=key)
    if is_interlaced:
        data = make_png(
            values, depth, color=0 if kind == "grey" else 2, key=key, is_interlaced=True
        )
    wanted = np.where(np.array(rows) == clear, 255, np.array(rows) * 255 // most)
    read = np.asarray(open_image(data))[..., 0].astype(int)
    assert np.abs(read - wanted).max() <= 1
    given = np.asarray(open_input(Image.open(io.BytesIO(data))))[..., 0].astype(int)
    assert np.abs(given - wanted).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_colors_of_a_palette(make_png: Callable[..., bytes], depth: int) -> None:
    values = np.array([[0, 1], [1, 0]])[..., None]
    data = make_png(values, depth, color=3, palette=[200, 30, 30, 0, 0, 0], key=b"\xff\x00")
    assert open_image(data).getpixel((0, 0)) == RED
    assert open_image(data).getpixel((1, 0)) == (255, 255, 255)
    half = make_png(
        values, depth, color=3, palette=[200, 30, 30, 0, 0, 0], key=b"\xff\x80" + b"\0" * 300
    )
    assert open_image(half).getpixel((1, 0)) == (127, 127, 127)


def test_bits_above_the_depth_of_a_transparent_color_do_not_count(
    make_png: Callable[..., bytes],
) -> None:
    values = np.array([[1, 2, 3, 0]])[..., None]
    data = make_png(values, 2, color=0, key=struct.pack(">H", 0x0102))
    assert np.asarray(open_image(data))[0, :, 0].tolist() == [85, 255, 255, 0]


@pytest.mark.parametrize("size", [(64_000_000, 1), (1, 64_000_000), (100_001, 2)])
def test_an_extremely_long_image_is_refused_from_its_header(
    make_png: Callable[..., bytes], size: tuple[int, int]
) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError, match="100000 pixels a side"):
        open_image(make_png(None, 1, color=0, size=size))
    assert time.monotonic() - start < 1


def test_a_panorama_is_read() -> None:
    panorama = Image.new("RGB", (20_000, 500), RED)
    assert open_image(encoded(panorama, "JPEG")).size == (20_000, 500)


def test_the_area_around_a_small_first_frame_is_transparent() -> None:
    first = Image.new("RGBA", (16, 16))
    first.paste((*RED, 255), (8, 8, 16, 16))
    second = Image.new("RGBA", (16, 16), (0, 255, 0, 255))
    data = encoded(first, "WEBP", lossless=True, save_all=True, append_images=[second])
    assert open_image(data).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(data).getpixel((12, 12)) == RED


def test_a_jpeg_of_more_bits_is_refused() -> None:
    frame = JPEG.index(b"\xff\xc0")
    for bits in (12, 16):
        data = JPEG[: frame + 4] + bytes([bits]) + JPEG[frame + 5 :]
        with pytest.raises(UsageError, match=f"a JPEG of {bits} bits; save it with 8 bits"):
            open_image(data)
