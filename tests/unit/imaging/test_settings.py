"""Generation settings in PNG files."""

import io
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from blip3o.core.errors import UsageError
from blip3o.imaging.load import open_image
from blip3o.imaging.settings import png_with_settings, read_settings

IMAGE = Image.new("RGB", (5, 4), "red")


def with_text(key: str, text: str) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    info.add_itxt(key, text)
    IMAGE.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def test_settings_come_back_and_pixels_are_untouched(tmp_path: Path) -> None:
    settings = {"prompt": "ein Käfer 🐞 <b>\n", "seed": 2**62, "guidance_scale": 2.5}
    data = png_with_settings(IMAGE, settings)
    assert read_settings(data) == settings
    (tmp_path / "a.png").write_bytes(data)
    assert read_settings(tmp_path / "a.png") == settings
    assert open_image(data).tobytes() == IMAGE.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        with_text("other", "{}"),
        with_text("blip3o", "no json"),
        with_text("blip3o", "[1, 2]"),
        with_text("blip3o", "[" * 100_000),
        with_text("blip3o", '{"prompt": "' + "a" * 200_000 + '"}'),
        png_with_settings(IMAGE, {"seed": 1})[:60],
    ],
)
def test_a_file_without_settings_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="holds no settings"):
        read_settings(data)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no settings"):
        read_settings(tmp_path / "a.png")
