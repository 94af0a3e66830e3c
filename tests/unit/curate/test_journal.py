"""The journal of requests: each is sent once, whatever is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.curate.asking.journal import Entry, Journal

KEYS = [f"{number:064x}" for number in range(40)]
SENDER = """
import sys, time
from pathlib import Path
from blip3o.curate.asking.journal import Journal

journal = Journal(Path(sys.argv[1]))
with journal.sending():
    print(journal.claim(sys.argv[2]), flush=True)
    time.sleep(60)
"""


def entry(key: str, text: str = "yes") -> Entry:
    return Entry(key=key, model="m", stage="judge", request={}, outcome="answered", text=text)


def start_sender(folder: Path, key: str) -> subprocess.Popen[str]:
    """Starts a process that claims a request and then waits for its answer for ever."""
    command = [sys.executable, "-c", SENDER, str(folder), key]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


def test_a_request_is_claimed_once_and_then_answered(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path), Journal(tmp_path)
    with journal.sending(), other.sending():
        assert journal.claim(KEYS[0]) == "mine"
        assert other.claim(KEYS[0]) == "in flight"
        assert journal.claim(KEYS[0]) == "in flight"
        journal.keep(entry(KEYS[0]))
        assert other.claim(KEYS[0]) == "answered"
        assert other.entry(KEYS[0]) == entry(KEYS[0])
        assert not list(tmp_path.glob("*/*.sent"))


def test_a_released_request_may_be_sent_by_another(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path), Journal(tmp_path)
    with journal.sending(), other.sending():
        journal.claim(KEYS[0])
        journal.release(KEYS[0])
        assert other.claim(KEYS[0]) == "mine"


def test_the_note_is_on_the_disk_before_the_request_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    journal = Journal(tmp_path)
    with journal.sending():
        synced.clear()
        journal.claim(KEYS[0])
        folder = tmp_path / KEYS[0][:2]
        note = folder / f"{KEYS[0]}.sent"
        assert synced == [note.stat().st_ino, folder.stat().st_ino], "content, then the name"


def test_a_killed_sender_loses_its_requests_and_a_living_one_does_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with start_sender(tmp_path, KEYS[0]) as process, journal.sending():
        assert journal.claim(KEYS[0]) == "in flight"
        assert journal.lost() == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert journal.lost() == [KEYS[0]]
        assert journal.claim(KEYS[0]) == "lost"
        assert journal.claim(KEYS[0]) == "lost", "nobody asks again without being told to"
        assert journal.claim(KEYS[0], again=True) == "mine"
        assert journal.lost() == []


def test_threads_and_journals_never_claim_a_request_twice(tmp_path: Path) -> None:
    journals = [Journal(tmp_path) for _ in range(3)]
    claimed: Counter[str] = Counter()
    mutex = threading.Lock()

    def work(journal: Journal) -> None:
        for key in KEYS:
            if journal.claim(key) == "mine":
                with mutex:
                    claimed[key] += 1
                journal.keep(entry(key))

    with contextlib.ExitStack() as stack:
        for journal in journals:
            stack.enter_context(journal.sending())
        pool = stack.enter_context(ThreadPoolExecutor(6))
        list(pool.map(work, journals * 2))
    assert claimed == dict.fromkeys(KEYS, 1)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": "x"}', b"[]", b'{"outcome": "lost"}'])
def test_a_damaged_answer_is_an_error_and_not_asked_again(tmp_path: Path, damage: bytes) -> None:
    journal = Journal(tmp_path)
    with journal.sending():
        journal.claim(KEYS[0])
        journal.keep(entry(KEYS[0]))
        (tmp_path / KEYS[0][:2] / f"{KEYS[0]}.json").write_bytes(damage)
        with pytest.raises(UsageError, match="is damaged: remove it"):
            journal.claim(KEYS[0])
