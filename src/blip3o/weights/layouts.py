"""Tells layouts of model folders apart by their config.json, without the code that reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from blip3o.core.errors import UsageError
from blip3o.weights.small_files import read_json


def is_published(data: object) -> TypeGuard[Mapping[str, object]]:
    """Returns whether the content of a config.json comes from transformers, for any model."""
    return isinstance(data, Mapping) and bool({"model_type", "architectures"} & data.keys())


def is_siglip2_sana(folder: str | Path) -> bool:
    """Returns whether a folder has this layout, according to its config.json."""
    try:
        data = read_json(Path(folder) / "config.json")
    except UsageError:
        return False
    return isinstance(data, dict) and data.get("diffusion_model") == "sana"
