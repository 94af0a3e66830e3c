"""A run folder has at most one run at a time."""

import os
import socket
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.train.claim import claimed


def test_a_second_run_is_refused_with_the_owner_of_the_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with claimed(run_dir):
        place = f"process {os.getpid()} on {socket.gethostname()} trains in {run_dir}"
        with pytest.raises(UsageError, match=f"^{place}: .*another --out$"), claimed(run_dir):
            pass
    with claimed(run_dir):
        pass


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_path_that_cannot_be_a_folder_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"is a file|cannot write"), claimed(tmp_path / name):
        pass
