"""Data sets for the tests of curation."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def shards_of_captions(tmp_path: Path) -> Path:
    """A folder with a shard of four captions; the second and the third are prompts of GenEval."""
    folder = tmp_path / "shards"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    captions = ("a castle at night", "There is a cow.", "four dogs", "a moat")
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for number, caption in enumerate(captions):
            data = {"png": buffer.getvalue(), "json": json.dumps({"caption": caption}).encode()}
            for suffix, content in data.items():
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder
