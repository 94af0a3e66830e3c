"""Untrusted images: unusual files are read, damaged files rejected, other rows unaffected."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.imaging.load import open_image


def noise_image(mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_alpha() -> bytes:
    image = noise_image("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    return stored(image)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(noise_image(), exif=exif)


def animated() -> bytes:
    frames = [noise_image("P"), Image.new("P", (20, 12))]
    return stored(frames[0], "GIF", save_all=True, append_images=frames[1:])


def sixteen_bit() -> bytes:
    values = np.linspace(0, 65535, 20 * 12).reshape(12, 20).astype(np.uint16)
    return stored(Image.fromarray(values))


ODD = {
    "cmyk": lambda: stored(noise_image("CMYK"), "JPEG"),
    "16 bit": sixteen_bit,
    "palette": lambda: stored(noise_image("P")),
    "grey": lambda: stored(noise_image("L")),
    "one bit": lambda: stored(noise_image("1")),
    "alpha": with_alpha,
    "exif": turned,
    "animated": animated,
    "1x1": lambda: stored(noise_image(size=(1, 1))),
    "thin": lambda: stored(noise_image(size=(500, 1))),
    "webp": lambda: stored(noise_image(), "WEBP"),
}
BROKEN = {
    "zero bytes": (lambda: b"", r"empty \(0 bytes\)"),
    "truncated": (lambda: stored(noise_image(size=(64, 64)))[:2000], "damaged or truncated"),
    "text": (lambda: b"this is no image at all", "is not an image"),
}


def edited(pipe: Blip3oPipeline, image: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe.edit(image, "make it blue", generator=generator, output_type="pt").images


@pytest.mark.parametrize("which", ODD)
def test_unusual_images_work_in_edits_and_questions(
    tiny_pipe: Blip3oPipeline, tmp_path: Path, which: str
) -> None:
    data = ODD[which]()
    file = tmp_path / "image"
    file.write_bytes(data)
    from_bytes = edited(tiny_pipe, data)
    assert bool(from_bytes.isfinite().all())
    assert torch.equal(edited(tiny_pipe, file), from_bytes)
    assert torch.equal(edited(tiny_pipe, str(file)), from_bytes)
    assert isinstance(tiny_pipe.ask(data, "What is this?"), str)


@pytest.mark.parametrize("which", ODD)
def test_an_image_opened_with_pil_is_read_as_its_file_is(
    tiny_pipe: Blip3oPipeline, which: str
) -> None:
    data = ODD[which]()
    opened = Image.open(io.BytesIO(data))
    assert torch.equal(tiny_pipe.encode([opened]), tiny_pipe.encode([data]))


@pytest.mark.parametrize("which", ODD)
def test_an_image_that_is_open_already_is_not_turned_again(
    tiny_pipe: Blip3oPipeline, which: str
) -> None:
    # The server and the terminal chat open images before the pipeline does.
    data = ODD[which]()
    assert torch.equal(tiny_pipe.encode([open_image(data)]), tiny_pipe.encode([data]))


def test_an_image_opened_with_pil_may_have_damaged_exif(tiny_pipe: Blip3oPipeline) -> None:
    for note in (b"Exif\0\0garbage garbage", b"Exif\0\0MM"):
        data = stored(noise_image(), "JPEG", exif=note)
        opened = Image.open(io.BytesIO(data))
        assert torch.equal(tiny_pipe.encode([opened]), tiny_pipe.encode([data]))


def test_transparent_parts_are_white(tiny_pipe: Blip3oPipeline) -> None:
    white = Image.new("RGB", (20, 12), (255, 255, 255))
    assert torch.equal(tiny_pipe.encode([with_alpha()]), tiny_pipe.encode([white]))


@pytest.mark.parametrize("which", BROKEN)
def test_broken_images_are_refused_in_one_line_with_their_name(
    tiny_pipe: Blip3oPipeline, tmp_path: Path, which: str
) -> None:
    make, message = BROKEN[which]
    file = tmp_path / "broken.png"
    file.write_bytes(make())
    for call in (
        lambda: tiny_pipe.edit(file, "make it blue"),
        lambda: tiny_pipe.ask(file, "What is this?"),
        lambda: tiny_pipe.reconstruct(file),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            call()
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=message):
        tiny_pipe.edit(make(), "make it blue")


def test_missing_files_and_folders_are_refused(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such image"):
        tiny_pipe.ask(tmp_path / "none.png", "What is this?")
    with pytest.raises(UsageError, match="is a folder"):
        tiny_pipe.edit(str(tmp_path), "make it blue")


def test_a_truncated_file_opened_with_pil_is_refused(tiny_pipe: Blip3oPipeline) -> None:
    opened = Image.open(io.BytesIO(stored(noise_image(size=(64, 64)))[:2000]))
    with pytest.raises(UsageError, match="damaged or truncated"):
        tiny_pipe.edit(opened, "make it blue")


@pytest.mark.parametrize("fault", [RuntimeError("planes\nfailed"), IndexError(), EOFError("end")])
def test_any_error_of_a_decoder_becomes_one_line(
    tiny_pipe: Blip3oPipeline, fault: Exception
) -> None:
    class Damaged(Image.Image):
        def load(self) -> None:
            raise fault

    with pytest.raises(UsageError, match=r"the image is damaged or truncated: .+") as caught:
        tiny_pipe.edit(Damaged(), "make it blue")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thing", [None, 3, np.zeros((4, 4, 3)), torch.zeros(3, 4, 4)])
def test_values_that_are_not_images_are_refused(tiny_pipe: Blip3oPipeline, thing: Any) -> None:
    with pytest.raises(UsageError, match="an image is a file, bytes or a PIL image, not"):
        tiny_pipe.edit(thing, "make it blue")


def test_a_bad_image_leaves_others_as_they_were(tiny_pipe: Blip3oPipeline) -> None:
    good = stored(noise_image())
    before = edited(tiny_pipe, good)
    answer = tiny_pipe.ask(good, "What is this?")
    for make, message in BROKEN.values():
        with pytest.raises(UsageError, match=message):
            tiny_pipe.edit([good, make()], ["make it blue", "make it red"])
        with pytest.raises(UsageError, match=message):
            tiny_pipe.answer_batch([good, make()], ["What is this?"] * 2)
    assert torch.equal(edited(tiny_pipe, good), before)
    assert tiny_pipe.ask(good, "What is this?") == answer


def test_an_opened_image_is_not_changed(tiny_pipe: Blip3oPipeline) -> None:
    image = Image.open(io.BytesIO(turned()))
    image.load()
    pixels, size = image.tobytes(), image.size
    edited(tiny_pipe, image)
    assert (image.tobytes(), image.size) == (pixels, size)
