"""Images that only plain Pillow refuses are not findings, because `open_image` reads them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o.data.findings import ODD
from blip3o.data.lint import LintChecks, lint


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


BAD_NOTES = {
    "checksum": chunk(b"tEXt", b"a\0b", crc=0),
    "long text": chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 3_000_000)),
}


@pytest.mark.parametrize("name", BAD_NOTES)
def test_damaged_image_metadata_is_not_a_finding(tmp_path: Path, name: str) -> None:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    data = file.getvalue()
    (tmp_path / "a.png").write_bytes(data[:33] + BAD_NOTES[name] + data[33:])
    (tmp_path / "a.txt").write_text("a cat")
    assert not [one for one in lint([str(tmp_path)], LintChecks()).findings if one.problem == ODD]
