"""Colors as a viewer shows them: profiles and the metadata that replaces them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from blip3o.generate.requests import open_input
from blip3o.imaging.load import open_image, open_pil, to_rgb
from blip3o.imaging.profiles import adobe_rgb, coded_profile, matrix_profile

GREEN = (120, 200, 80)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """Returns a PNG with an additional chunk after its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """Returns an ICC profile of a few tags."""
    offset, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(
        ">I4xI4s4s4s12x4s", offset + len(body), 0x02100000, kind, space, pcs, b"acsp"
    )
    head += b"\0" * 28 + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + table + body


D50 = b"XYZ \0\0\0\0" + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
LINEAR_GREY = profile(b"GRAY", {b"wtpt": D50, b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", 0)})


def ink_profile() -> bytes:
    """Returns a CMYK profile that swaps cyan and yellow."""
    ramp = bytes(range(256))
    nodes = b""
    for number in range(16):
        cyan, magenta, yellow, black = (number >> place & 1 for place in (3, 2, 1, 0))
        light = 255 * (1 - black)
        nodes += bytes(
            [
                light * (6 - magenta * 3 - cyan) // 6,
                128 + 60 * magenta * (1 - black),
                128 + (70 * cyan - 60 * yellow) * (1 - black),
            ]
        )
    identity = struct.pack(">9i", *(65536 * (k % 4 == 0) for k in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + nodes + ramp * 3
    return profile(b"CMYK", {b"wtpt": D50, b"A2B0": lut}, b"Lab ")


def seen(levels: tuple[int, ...], matrix: np.ndarray, gamma: float) -> np.ndarray:
    """Returns the sRGB levels of RGB levels of another space, by the formulas."""
    xyz = matrix @ (np.array(levels) / 255) ** gamma
    back = np.linalg.inv(SRGB_TO_XYZ) @ xyz
    light = np.clip(back, 0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return curve * 255


SRGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
ADOBE_TO_XYZ = np.array(
    [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
)
P3_TO_XYZ = np.array(
    [[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0.0, 0.04511, 1.04394]]
)
AS_ADOBE = seen(GREEN, ADOBE_TO_XYZ, 563 / 256)


def near(image: Image.Image, wanted: object, most: float = 3) -> bool:
    values = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(float)
    return bool(np.abs(values - np.asarray(wanted)).max() <= most)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_an_embedded_profile_is_applied(kind: str) -> None:
    options = {"quality": 95} if kind in {"JPEG", "AVIF"} else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    image = Image.new("RGB", (16, 16), GREEN)
    data = encoded(image, kind, icc_profile=adobe_rgb(), **options)
    most = 12 if kind == "AVIF" else 4  # a lossy error of 2 becomes 11 levels in the result
    assert near(open_image(data), AS_ADOBE, most)
    assert near(open_input(Image.open(io.BytesIO(data))), AS_ADOBE, most)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_an_image_given_in_python_is_read_by_its_profile_once(mode: str) -> None:
    image = Image.new("RGB", (4, 4), GREEN).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.info["icc_profile"] = adobe_rgb()
    first = to_rgb(image)
    assert near(first, AS_ADOBE)
    assert np.array_equal(np.asarray(to_rgb(first)), np.asarray(first))
    assert "icc_profile" in image.info  # the caller's image is unchanged


def test_transparent_parts_stay_white_under_a_profile() -> None:
    image = Image.new("RGBA", (2, 1), (*GREEN, 0))
    image.putpixel((1, 0), (*GREEN, 255))
    read = open_image(encoded(image, icc_profile=adobe_rgb()))
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert near(read.crop((1, 0, 2, 1)), AS_ADOBE)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_images_have_their_own_profiles(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 100 * 257, np.uint16))
    else:
        image = Image.new("L", (4, 4), 100 if mode != "1" else 255).convert(mode)
    image.info["icc_profile"] = LINEAR_GREY
    light = 100 / 255  # a middle level of linear numbers looks bright
    wanted = 255 if mode == "1" else 255 * (1.055 * light ** (1 / 2.4) - 0.055)
    assert near(to_rgb(image), wanted)


@pytest.mark.parametrize("mode", ["RGBX", "YCbCr", "HSV", "RGBa", "PA", "La", "LA", "1"])
def test_every_mode_in_python_has_a_profile(mode: str) -> None:
    is_grey = mode in {"La", "LA", "1"}
    image = Image.new("LA" if is_grey else "RGB", (4, 4), (255, 255) if is_grey else GREEN)
    if mode == "PA":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE).convert("PA")
    elif mode != image.mode:
        image = image.convert("RGBA" if mode == "RGBa" else image.mode).convert(mode)
    image.info["icc_profile"] = LINEAR_GREY if is_grey else adobe_rgb()
    assert near(open_pil(image), 255 if is_grey else AS_ADOBE, 10)


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_premultiplied_grey_is_read(alpha: int) -> None:
    image = Image.new("LA", (4, 4), (100, alpha)).convert("La")
    assert near(open_pil(image), 100 * alpha / 255 + 255 - alpha, 2)


def in_gif() -> bytes:
    data = encoded(Image.new("P", (4, 4)), "GIF")
    table = bytes(GREEN) + data[16 : 13 + (6 << (data[10] & 7))]
    blocks = adobe_rgb()
    blocks = b"".join(
        bytes([len(blocks[at : at + 255])]) + blocks[at : at + 255]
        for at in range(0, len(blocks), 255)
    )
    note = b"!\xff\x0bICCRGBG1012" + blocks + b"\0"
    return data[:13] + table + note + data[13 + len(table) :]


def in_bmp() -> bytes:
    plain = encoded(Image.new("RGB", (4, 4), GREEN), "BMP")
    pixels = plain[54:]
    head = struct.pack("<I", 124) + plain[18:54] + b"\0" * 16 + b"DEBM" + b"\0" * 48
    head += struct.pack("<4I", 4, 124 + len(pixels), len(adobe_rgb()), 0)
    return plain[:10] + struct.pack("<I", 14 + 124) + head + pixels + adobe_rgb()


@pytest.mark.parametrize("data", [in_gif(), in_bmp()], ids=["GIF", "BMP"])
def test_a_profile_that_pillow_does_not_find_is_applied(data: bytes) -> None:
    assert near(open_image(data), AS_ADOBE)
    given = Image.open(io.BytesIO(data))
    assert near(given.convert("RGB"), GREEN, 0)
    assert near(open_pil(Image.open(io.BytesIO(data))), AS_ADOBE)


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [((12, 13), seen(GREEN, P3_TO_XYZ, 2.2)), ((1, 13), GREEN), ((2, 2), GREEN), ((9, 16), GREEN)],
)
def test_color_code_points_of_an_avif(codes: tuple[int, int], wanted: object) -> None:
    image = Image.new("RGB", (16, 16), GREEN)
    data = bytearray(encoded(image, "AVIF", quality=99, subsampling="4:4:4"))
    at = data.index(b"colrnclx") + 8
    data[at : at + 4] = bytes([0, codes[0], 0, codes[1]])
    assert near(open_image(bytes(data)), wanted, 6)


def test_a_profile_of_an_avif_has_priority_over_its_code_points() -> None:
    image = Image.new("RGB", (16, 16), GREEN)
    options = {"quality": 99, "subsampling": "4:4:4", "icc_profile": adobe_rgb()}
    data = encoded(image, "AVIF", **options)
    assert near(open_image(data), AS_ADOBE, 10)


def test_a_giant_profile_is_not_kept_in_memory() -> None:
    image = Image.new("RGB", (4, 4), GREEN)
    image.info["icc_profile"] = adobe_rgb() + b"\0" * (1 << 22)
    assert near(open_pil(image), GREEN, 0)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (3, 2, 1)])
def test_a_profile_in_many_parts_of_a_jpeg(order: tuple[int, ...]) -> None:
    data = encoded(Image.new("RGB", (16, 16), GREEN), "JPEG", quality=95)
    whole = adobe_rgb() + b"\0" * 100_000
    step = -(-len(whole) // len(order))
    for place in reversed(order):
        part = b"ICC_PROFILE\0" + bytes([place, 3]) + whole[(place - 1) * step : place * step]
        data = data[:2] + b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part + data[2:]
    assert near(open_image(data), AS_ADOBE, 8)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_are_read_by_their_profile(kind: str) -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    plain = np.asarray(open_image(encoded(image, kind)))[8, 8]
    read = np.asarray(open_image(encoded(image, kind, icc_profile=ink_profile())))[8, 8]
    assert plain[2] > 200 > 100 > plain[0]  # cyan without a profile
    assert read[0] > 150 > 100 > read[2]  # yellow with this profile


@pytest.mark.parametrize(
    "bad",
    [
        b"no profile",
        adobe_rgb()[:200],
        b"\0" * 300,
        LINEAR_GREY,
        ink_profile(),
        adobe_rgb()[:12] + b"link" + adobe_rgb()[16:],
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_damaged_or_foreign_profile_is_ignored(bad: bytes, kind: str) -> None:
    data = encoded(Image.new("RGB", (8, 8), GREEN), kind, icc_profile=bad)
    plain = encoded(Image.new("RGB", (8, 8), GREEN), kind)
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(open_image(plain)))


def test_an_srgb_profile_changes_no_bit() -> None:
    from PIL import ImageCms

    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for one in (
        own,
        matrix_profile((0.3127, 0.329), ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06)), 0.0),
    ):
        data = encoded(Image.fromarray(noise), icc_profile=one)
        assert np.array_equal(np.asarray(open_image(data)), noise)


def test_an_rgb_profile_is_ignored_for_grey() -> None:
    image = Image.new("L", (4, 4), 100)
    image.info["icc_profile"] = adobe_rgb()
    assert near(to_rgb(image), 100, 0)


def test_lab_images_are_read() -> None:
    srgb = Image.new("RGB", (4, 4), (200, 30, 30))
    assert near(open_image(encoded(srgb.convert("LAB"), "TIFF")), (200, 30, 30), 4)
    with_foreign = encoded(srgb.convert("LAB"), "TIFF", icc_profile=adobe_rgb())
    assert near(open_image(with_foreign), (200, 30, 30), 4)


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        (bytes([12, 13, 0, 1]), seen(GREEN, P3_TO_XYZ, 2.2)),
        (bytes([1, 13, 0, 1]), GREEN),
        (bytes([9, 16, 0, 1]), GREEN),  # HDR: unchanged
        (bytes([12, 13, 0, 0]), GREEN),
        (b"\x0c\x0d", GREEN),
    ],
)
def test_color_code_points_of_a_png(code: bytes, wanted: object) -> None:
    data = with_chunk(encoded(Image.new("RGB", (4, 4), GREEN)), b"cICP", code)
    assert near(open_image(data), wanted, 5)


def test_code_points_have_priority_over_a_profile() -> None:
    data = encoded(Image.new("RGB", (4, 4), GREEN), icc_profile=adobe_rgb())
    assert near(open_image(with_chunk(data, b"cICP", bytes([1, 13, 0, 1]))), GREEN, 0)
    assert coded_profile(b"") is None


def test_gamma_of_a_png_counts_without_better_metadata() -> None:
    grey = encoded(Image.new("RGB", (4, 4), (100, 100, 100)))
    linear = struct.pack(">I", 100_000)
    bright = 255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055)
    assert near(open_image(with_chunk(grey, b"gAMA", linear)), bright)
    assert near(to_rgb(Image.open(io.BytesIO(with_chunk(grey, b"gAMA", linear)))), bright)
    usual = with_chunk(grey, b"gAMA", struct.pack(">I", 45_455))
    assert near(open_image(usual), 100, 0)
    both = with_chunk(with_chunk(grey, b"gAMA", linear), b"sRGB", b"\0")
    assert near(open_image(both), 100, 0)


def test_primaries_of_a_png_count_together_with_its_gamma() -> None:
    points = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
    data = encoded(Image.new("RGB", (4, 4), GREEN))
    data = with_chunk(data, b"cHRM", struct.pack(">8I", *points))
    assert near(open_image(data), GREEN, 0)
    assert near(open_image(with_chunk(data, b"gAMA", struct.pack(">I", 45_470))), AS_ADOBE, 3)


def test_invalid_numbers_about_colors_are_ignored() -> None:
    for points, gamma in (((0,) * 8, 45_455), ((1,) * 8, 100_000), ((2**32 - 1,) * 8, 1)):
        data = encoded(Image.new("RGB", (4, 4), GREEN))
        data = with_chunk(data, b"cHRM", struct.pack(">8I", *points))
        assert near(open_image(with_chunk(data, b"gAMA", struct.pack(">I", gamma))), GREEN, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("name", "is_adobe"), [("R03", True), ("R98", False)])
def test_adobe_rgb_as_cameras_mark_it(kind: str, name: str, is_adobe: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    details = exif.get_ifd(0x8769)
    details[0xA001], details[0xA005] = 0xFFFF, {1: name}
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    image = Image.new("RGB", (16, 16), GREEN)
    data = encoded(image, kind, exif=exif.tobytes(), **options)
    assert near(open_image(data), AS_ADOBE if is_adobe else GREEN, 4)
    assert near(open_input(Image.open(io.BytesIO(data))), AS_ADOBE if is_adobe else GREEN, 4)
