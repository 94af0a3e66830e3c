"""Images of any kind: read correctly, or refused with one line that names the file."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.imaging.load import ImageLimits, open_image, open_pil, to_rgb, upright

RED, WHITE = (255, 0, 0), (255, 255, 255)


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png_header(width: int, height: int) -> bytes:
    """Returns a PNG that claims a size but holds almost no data."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(b"\0" * 64)
    rest = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk + rest


def _noise(width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_paths_bytes_and_files_give_the_same_image(tmp_path: Path) -> None:
    image = _noise()
    path = tmp_path / "p.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert np.array_equal(np.asarray(open_image(source)), np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_common_formats_are_read(kind: str) -> None:
    image = open_image(_encoded(Image.new("RGB", (6, 4), RED), kind))
    assert image.mode == "RGB"
    assert image.size == (6, 4)
    assert np.abs(np.asarray(image).astype(int) - np.array(RED)).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode.startswith("I"):
        image = Image.fromarray(np.full((4, 6), 65535, np.uint16 if ";" in mode else np.int32))
    else:
        image = (
            Image.new("RGB", (6, 4), WHITE).convert("L" if mode == "PA" else "RGB").convert(mode)
        )
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert rgb.getpixel((3, 2)) == WHITE


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = open_image(_encoded(Image.fromarray(ramp)))
    assert np.abs(np.asarray(image)[..., 0].astype(float) - ramp / 257).max() <= 0.5


def test_16_bit_grey_may_have_a_transparent_level() -> None:
    levels = np.array([[30_000, 0], [65_535, 29_999]], dtype=np.uint16)
    read = np.asarray(open_image(_encoded(Image.fromarray(levels), transparency=30_000)))[..., 0]
    assert read.tolist() == [[255, 0], [255, 117]]


def test_cmyk_jpeg_keeps_its_colors() -> None:
    image = open_image(_encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.asarray(image)[8, 8].astype(int) - np.array(RED)).max() <= 8


def test_transparent_parts_are_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert open_image(_encoded(clear)).getpixel((0, 0)) == WHITE
    assert open_image(_encoded(half)).getpixel((0, 0)) == (255, 127, 127)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert open_image(_encoded(palette)).getpixel((0, 0)) == RED
    assert open_image(_encoded(palette, transparency=1)).getpixel((0, 0)) == WHITE
    keyed = Image.new("RGB", (4, 4), RED)
    assert open_image(_encoded(keyed, transparency=RED)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    seen = np.zeros((16, 32, 3), np.uint8)
    seen[:8, :16] = (255, 0, 0)
    seen[8:, 16:] = (0, 0, 255)
    # A camera stores the inverse of the operation that a viewer applies.
    stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: np.rot90(seen, 1),
        7: np.rot90(seen.transpose(1, 0, 2), 2),
        8: np.rot90(seen, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(data)), seen)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_opened_image_has_no_orientation_left(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_image(_encoded(Image.new("RGB", (32, 16), RED), kind, exif=exif))
    assert opened.size == (16, 32)
    assert upright(opened).size == (16, 32)


def test_damaged_exif_is_ignored() -> None:
    data = _encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\0\0garbage garbage")
    assert open_image(data).size == (8, 8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 255, 0), (0, 0, 255))]
    data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(open_image(data))[4, 4].astype(int) - np.array(RED)).max() <= 4


def test_one_pixel_is_an_image() -> None:
    data = _encoded(Image.new("RGB", (1, 1), RED))
    assert open_image(data).getpixel((0, 0)) == RED


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kind: str, cut: float) -> None:
    data = _encoded(_noise(64, 64), kind)
    path = tmp_path / "cut.bin"
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(UsageError, match=r"cut\.bin") as caught:
        open_image(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, not an image", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image"),
        (b"\xff\xd8\xff" + b"\xff" * 200, "image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
    ],
)
def test_files_other_than_images_are_refused_by_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        open_image(path)
    assert "bad.png" in str(caught.value)


def test_missing_files_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such image: .*nowhere\.png"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(UsageError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(UsageError, match="cannot read"):
        open_image("a\0b.png")
    with pytest.raises(UsageError, match="cannot read"):
        open_image("x" * 5000)
    with pytest.raises(UsageError, match="not an ordinary file"):
        open_image("/dev/zero")


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_from_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"pixels|image"):
        open_image(_png_header(*size))


def test_the_header_is_read_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(UsageError, match="9000 x 9000"):
        open_image(_png_header(9000, 9000))


def test_long_files_are_refused_without_reading_them_whole(tmp_path: Path) -> None:
    data = _encoded(_noise())
    path = tmp_path / "long.png"
    path.write_bytes(data)
    for source in (path, data, io.BytesIO(data)):
        with pytest.raises(UsageError, match="more than 100 bytes"):
            open_image(source, ImageLimits(max_bytes=100))


@pytest.mark.parametrize("mode", ["RGB", "L", "I", "RGBA", "P"])
@pytest.mark.parametrize("size", [(0, 0), (0, 4), (4, 0)])
def test_an_image_without_pixels_is_refused(mode: str, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"{size[0]} x {size[1]} pixels"):
        open_pil(Image.new(mode, size))


def test_an_unsupported_kind_is_not_called_damaged() -> None:
    data = bytearray(_encoded(Image.new("RGB", (4, 4), RED), "BMP"))
    data[28:34] = (16).to_bytes(2, "little") + (3).to_bytes(4, "little")  # bits and odd masks
    with pytest.raises(UsageError, match=r"of a kind that cannot be read.*save it as"):
        open_image(bytes(data))


def test_floating_point_images_are_refused() -> None:
    data = _encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(UsageError, match="floating point"):
        open_image(data)
    with pytest.raises(UsageError, match="32-bit"):
        to_rgb(Image.fromarray(np.full((4, 4), 70_000, np.int32)))


def test_random_damage_raises_only_usage_errors() -> None:
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        clean = np.frombuffer(_encoded(_noise(16, 16), kind), np.uint8)
        for _ in range(40):
            damaged = clean.copy()
            places = rng.integers(0, len(damaged), 4)
            damaged[places] = rng.integers(0, 256, 4)
            with contextlib.suppress(UsageError):
                assert open_image(damaged.tobytes()).mode == "RGB"
