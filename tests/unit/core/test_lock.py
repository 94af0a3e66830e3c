"""Locks: a single holder, named in messages to others, and released with its process."""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.lock import locked


def fork(work: Callable[[], object]) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def wait_for(file: Path) -> None:
    end = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def hold(lock: Path, ready: Path, *, child: bool = False) -> None:
    with locked(lock):
        if child:  # like the worker of a data loader, which outlives its parent for some seconds
            fork(lambda: time.sleep(3))
        ready.touch()
        time.sleep(30)


def test_a_second_process_learns_the_holder_of_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = fork(lambda: hold(lock, tmp_path / "ready"))
    wait_for(tmp_path / "ready")
    with pytest.raises(UsageError) as caught, locked(lock, "is at work here"):
        pass
    expected = f"process {holder.pid} on {socket.gethostname()} is at work here"
    assert str(caught.value) == expected
    holder.kill()
    holder.join()


@pytest.mark.parametrize("child", [False, True])
def test_kill_9_frees_the_lock_immediately_even_with_living_children(
    tmp_path: Path, child: bool
) -> None:
    lock = tmp_path / "lock"
    holder = fork(lambda: hold(lock, tmp_path / "ready", child=child))
    wait_for(tmp_path / "ready")
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locked(lock, "is at work here"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


def test_others_wait_and_follow_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with locked(tmp_path / "lock"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
    assert not list(tmp_path.iterdir())
    assert "waiting for" in capsys.readouterr().err


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", "is at work here"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_gives_a_warning_and_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, number: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", "is at work here"):
        pass
    assert "does not support locks" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES, errno.EPERM])
def test_the_holder_is_named_for_every_error_of_a_network_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "lock").write_text('{"pid": 7, "host": "other"}')

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UsageError, match=r"^process 7 on other is at work here$"),
        locked(tmp_path / "lock", "is at work here"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC])
@pytest.mark.parametrize("is_held", [False, True])
def test_a_disk_that_fails_while_locking_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_held: bool
) -> None:
    def fail(_: int, flags: int) -> None:
        held = is_held and flags & fcntl.LOCK_NB
        raise OSError(errno.EAGAIN if held else number, "it fails")

    monkeypatch.setattr(fcntl, "flock", fail)
    reason = re.escape(reason_of(OSError(number, "it fails")))
    with pytest.raises(UsageError, match=f"cannot lock .*: {reason}"), locked(tmp_path / "lock"):
        pass


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"), locked(tmp_path / "file" / "lock"):
        pass


def test_many_processes_follow_one_by_one_although_the_file_is_removed_each_time(
    tmp_path: Path,
) -> None:
    count = tmp_path / "count"
    count.write_text("0")

    def work() -> None:
        for _ in range(50):
            with locked(tmp_path / "lock"):
                count.write_text(str(int(count.read_text()) + 1))

    processes = [fork(work) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert count.read_text() == "200"
    assert [file.name for file in tmp_path.iterdir()] == ["count"]


def test_a_script_without_a_main_guard_ends_instead_of_waiting_for_itself(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, pathlib\n"
        "from blip3o.core.lock import locked\n"
        "with locked(pathlib.Path(__file__).with_suffix('.lock')):\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    worker.start()\n"
        "    worker.join()\n"
        "raise SystemExit(worker.exitcode)\n"
    )
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert 'call blip3o under `if __name__ == "__main__":`' in ran.stderr
    assert "waiting for" not in ran.stderr
