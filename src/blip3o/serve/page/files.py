"""Files that the page shows: each appears under its name only when it is whole."""

import hashlib
import io
import os
import tempfile
from pathlib import Path

from PIL import Image


def kept(data: bytes, name: str, folder: str) -> str:
    """Writes a file where browsers can fetch it, unless it is there already.

    Equal contents have one path, so a browser may read a file while another thread writes the same
    one. So a file is written under another name, then renamed, and never rewritten.

    Args:
        data: the content.
        name: the file's name; its last part counts.
        folder: folder of the page's files.

    Returns:
        The absolute path.

    Raises:
        OSError: if the file cannot be written.
    """
    path = Path(folder).resolve() / hashlib.sha256(data).hexdigest() / Path(name).name
    if path.exists():
        os.utime(path)  # old files are deleted, and this one is in use again
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(scratch, path)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return str(path)


def kept_image(img: Image.Image, cache_dir: str, name: str = "image", format: str = "webp") -> str:
    """Writes an image as Gradio's function of the same arguments does, but with `kept`.

    Args:
        img: the image.
        cache_dir: folder of the page's files.
        name: the file's name without its suffix.
        format: the suffix, which is also the file's format.

    Raises:
        OSError: if the file cannot be written.
    """
    buffer = io.BytesIO()
    img.save(buffer, format)
    return kept(buffer.getvalue(), f"{name}.{format}", cache_dir)
