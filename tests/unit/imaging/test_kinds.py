"""Files that cannot be read as images: the message names their kind."""

import struct
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.imaging.kinds import format_of
from blip3o.imaging.load import open_image

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"


def boxed(brand: bytes, *others: bytes) -> bytes:
    body = b"ftyp" + brand + b"\0\0\0\0" + b"".join(others)
    return struct.pack(">I", len(body) + 4) + body + b"\0\0\0\x08mdat" + b"\xff" * 60


def directory(*lines: tuple[int, int, int, int]) -> bytes:
    table = b"".join(struct.pack("<HHII", *line) for line in lines)
    return b"II*\0" + struct.pack("<IH", 8, len(lines)) + table + b"\0" * 200


KINDS: dict[str, tuple[bytes, str]] = {
    "HEIC": (boxed(b"heic", b"mif1"), "a HEIC photo: save it as JPEG or PNG"),
    "HEIC of a plain brand": (boxed(b"mif1", b"mif1", b"heix"), "HEIC"),
    "HEIC sequence": (boxed(b"msf1", b"hevc"), "HEIC"),
    "damaged AVIF": (boxed(b"avif", b"mif1"), "damaged or truncated image|AVIF"),
    "JPEG XL": (b"\xff\x0a\xfa\x7f" + b"\0" * 50, "a JPEG XL image: save it as JPEG or PNG"),
    "JPEG XL in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 50, "JPEG XL"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 50, "JPEG 2000"),
    "JPEG 2000 stream": (b"\xff\x4f\xff\x51" + b"\0" * 50, "JPEG 2000"),
    "PSD": (b"8BPS\0\1" + b"\0" * 50, "Photoshop"),
    "XCF": (b"gimp xcf v011" + b"\0" * 50, "GIMP"),
    "SVG": (b'<?xml version="1.0"?>\n<!-- x -->\n<svg xmlns="a">', "an SVG drawing"),
    "SVG without a head": (b"  <svg>", "an SVG drawing"),
    "SVG in UTF-16": ("\ufeff<svg></svg>".encode("utf-16-le"), "an SVG drawing"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    "EPS of DOS": (b"\xc5\xd0\xd3\xc6" + b"\0" * 50, "PostScript"),
    "CR2": (b"II*\0\x10\0\0\0CR\x02\0" + b"\0" * 50, "raw photo .CR2."),
    "CR3": (boxed(b"crx ", b"isom"), "raw photo .CR3."),
    "DNG": (directory((256, 3, 1, 9), (50706, 1, 4, 1)), "raw photo .DNG."),
    "NEF": (directory((254, 4, 1, 1), (330, 4, 1, 99)), "raw photo .as NEF"),
    "mosaic": (directory((262, 3, 1, 32803), (254, 4, 1, 0)), "raw photo"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + b"\0" * 50, "raw photo .RAF."),
    "ICO": (b"\0\0\1\0\1\0" + b"\0" * 50, "an icon"),
    "TGA": (b"\0\0\2" + b"\0" * 9 + b"\4\0\4\0\x18\0" + b"\x80" * 48, "a TGA image"),
    "TGA with a footer": (b"\x80" * 60 + b"\0" * 8 + b"TRUEVISION-XFILE.\0", "a TGA image"),
    "PAM": (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 4\n", "a PAM image: save it as JPEG or PNG"),
    "PFM with colors": (b"PF\n1 1\n-1.0\n" + b"\0" * 12, "floating point numbers .PFM."),
    "EXR": (b"v/1\x01" + b"\0" * 50, "OpenEXR"),
    "HDR": (b"#?RADIANCE\nFORMAT=", "Radiance"),
    "DICOM": (b"\0" * 128 + b"DICM" + b"\1" * 20, "DICOM"),
    "video": (boxed(b"isom", b"mp42"), "a video"),
    "QuickTime": (boxed(b"qt  "), "a video"),
    "WebM": (b"\x1a\x45\xdf\xa3" + b"\1" * 50, "a video"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST" + b"\0" * 50, "video"),
    "git-lfs": (LFS, "a git-lfs pointer: fetch the file: git lfs pull"),
    "web page": (b"<!DOCTYPE html><html><head></head></html>", "a web page"),
    "web page after space": ("\ufeff\n\n <HTML lang='de'>ä".encode(), "a web page"),
    "error of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "XML text"),
    "JSON": (b'{"error": "not found"}', "a JSON text"),
    "text": ("nicht gefunden: größe\n".encode(), "a text"),
    "ZIP": (b"PK\3\4" + b"\0" * 50, "a ZIP archive"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 50, "a gzip archive"),
    "tar": (b"a.png".ljust(257, b"\0") + b"ustar\0" + b"\0" * 200, "a tar archive"),
    "Parquet": (b"PAR1" + b"\1" * 50, "a Parquet table"),
    "NumPy": (b"\x93NUMPY\1\0" + b"\0" * 50, "a NumPy array"),
    "base64": (b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB", "base64 text"),
    "data URI": (b"data:image/png;base64,iVBORw0KGgo", "a data URI"),
    "zero bytes": (b"\0" * 4096, "zero bytes"),
    "PNG sent as text": (b"\x89PNG\n\x1a\n\0\0\0\nIHDR", "line ends"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    data, message = KINDS[name]
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        open_image(path)
    assert "photo.png" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "image" in str(caught.value) or "raw photo" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe1", "JPEG"),
        (b"GIF89a", "GIF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP"),
        (b"BM" + b"\0" * 20, "BMP"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"P6\n1 1\n255\nabc", "PPM"),
        (boxed(b"avis", b"avif"), "AVIF"),
        (b"Paris", None),
        (b"", None),
    ],
)
def test_formats_are_recognized_by_their_first_bytes(data: bytes, kind: str | None) -> None:
    assert format_of(data) == kind


def test_random_bytes_are_only_called_not_an_image() -> None:
    for start in (b"\x7fELF\2\1\1", b"\xca\xfe\xba\xbe", b"\x01\x02\xff\xfe" * 20):
        with pytest.raises(UsageError, match=r"not an image this program can read$"):
            open_image(start + b"\xff\xfe\x00\x01" * 30)
