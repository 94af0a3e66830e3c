"""A small real detector, which tests of the evaluation run with."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from blip3o.eval.detectors import DetectorConfig

_FILE = Path(__file__).with_name("centernet.py")


@pytest.fixture(scope="session")
def centernet() -> DetectorConfig:
    """Returns the settings of CenterNet; skips the test if its files are not there."""
    spec = importlib.util.spec_from_file_location("centernet", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["centernet"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    folder = os.environ.get(module.FOLDER_VARIABLE)
    if not folder:
        pytest.skip(module.HOW_TO_GET)
    return module.CenterNetConfig(folder=folder)
