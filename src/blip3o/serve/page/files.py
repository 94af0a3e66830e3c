"""Files that the page shows; each appears under its name only once it is complete."""

import hashlib
import io
import os
import tempfile
from pathlib import Path

from PIL import Image


def kept(data: bytes, name: str, folder: str) -> str:
    """Writes a file where browsers can fetch it, unless it exists; returns the absolute path.

    Equal contents share a path, so a browser may read a file while another thread wants to write
    it. Therefore a file is written under a temporary name, renamed, and never rewritten.

    Folders in `name` are ignored.
    """
    path = Path(folder).resolve() / hashlib.sha256(data).hexdigest() / Path(name).name
    if path.exists():
        os.utime(path)  # old files are deleted; this one is in use again
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
    """Writes an image with `kept`; replaces Gradio's function with the same arguments."""
    buffer = io.BytesIO()
    img.save(buffer, format)
    return kept(buffer.getvalue(), f"{name}.{format}", cache_dir)
