"""Finds the recorded inputs and outputs of the released system; tests name no case and no size.

A test marked `parity_cases(pattern)` runs once for every recorded file that the pattern finds and
gets it as the argument `case`. A pattern that finds nothing fails: a family never goes missing
silently.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

_DEFAULT_FOLDER = Path(__file__).parent.parent / "data" / "parity"


@dataclasses.dataclass(frozen=True)
class RecordedCase:
    """One recorded file and those that lie beside it under the same name.

    Args:
        path: the file that the test's pattern found.
    """

    path: Path

    def tensors(self, ending: str | None = None) -> dict[str, Tensor]:
        """Returns the tensors of a file, fp32 where they are stored as exact halves.

        Args:
            ending: "forward" stands for the file NAME_forward beside NAME_weights; None for the
                case's own file.
        """
        values = load_file(self.path if ending is None else self._beside(f"_{ending}.safetensors"))
        half = torch.float16
        return {name: v.float() if v.dtype == half else v for name, v in values.items()}

    def settings(self) -> dict[str, Any]:
        """Returns the JSON of the case: its own file, or NAME.json beside NAME_weights."""
        path = self.path if self.path.suffix == ".json" else self._beside(".json")
        return json.loads(path.read_text(encoding="utf-8"))

    def _beside(self, ending: str) -> Path:
        name = self.path.stem.rpartition("_")[0]
        return self.path.with_name(name + ending)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("parity_cases")
    if marker is None:
        return
    folder = Path(os.environ.get("BLIP3O_PARITY_DIR", _DEFAULT_FOLDER))
    paths = sorted(folder.glob(marker.args[0]))
    if not paths:
        raise FileNotFoundError(f"no recorded case matches {folder / marker.args[0]}")
    cases = [RecordedCase(path) for path in paths]
    metafunc.parametrize("case", cases, ids=[path.stem for path in paths])
