"""The journal of requests: a note before each one is sent, and its answer.

A request is a file `KEY.sent` while it is in flight and `KEY.json` when it is answered. The note is
created exclusively and is on the disk before the request leaves, so two processes, or one that was
killed and started again, never send the same request. A note without an answer whose sender lives
no more is a lost request: the server may have charged for it.
"""

import dataclasses
import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, get_args

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import flush, write_atomic
from blip3o.core.lock import locked
from blip3o.remote.chat import Answer, AnswerOutcome
from blip3o.remote.images import ImageAnswer

Claim = Literal["mine", "answered", "in flight", "lost"]
"""The state of a request when a process wants to send it: only "mine" may be sent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, as the journal names it.

    Args:
        key: key of the request.
        model: name and revision of the model.
        stage: name of the stage that asked first.
        request: the request as JSON, with hashes of its images.
    """

    key: str
    model: str
    stage: str
    request: Mapping[str, object]

    def answered(self, answer: Answer | ImageAnswer, image: str = "") -> "Entry":
        """Returns the request with its answer.

        Args:
            answer: the answer.
            image: sha256 of its image; empty for none.
        """
        return Entry(
            key=self.key,
            model=self.model,
            stage=self.stage,
            request=self.request,
            outcome=answer.outcome,
            text=answer.text,
            image=image,
            stated_model=answer.model,
            fingerprint=answer.fingerprint if isinstance(answer, Answer) else "",
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry(Asked):
    """An answered request; the first arguments are those of `Asked`.

    Args:
        outcome: how it ended.
        text: the text, or the reason of a refusal.
        image: sha256 of the image; empty for none.
        stated_model: name of the model that the server states.
        fingerprint: fingerprint that the server states.
        prompt_tokens: tokens of the request; 0 if the server does not count them.
        completion_tokens: tokens of the answer.
    """

    outcome: AnswerOutcome
    text: str = ""
    image: str = ""
    stated_model: str = ""
    fingerprint: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Journal:
    """The journal in a folder, which several processes and machines may share.

    Args:
        folder: the folder; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._senders = folder / "senders"
        self._senders.mkdir(parents=True, exist_ok=True)
        self._name = ""

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Marks this process as a living sender while the block runs."""
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with self.living(self._name):
            yield

    @contextmanager
    def living(self, sender: str, refusal: str | None = None) -> Iterator[None]:
        """Marks a sender as living while the block runs: a process, or a batch that it polls.

        Args:
            sender: name of the sender.
            refusal: error message if another process does that already; None to wait for it.

        Raises:
            HeldError: if another process does, and `refusal` is given.
        """
        with locked(self._senders / sender, refusal):
            yield

    def entry(self, key: str) -> Entry | None:
        """Returns the answer to a request; None if there is none yet.

        Raises:
            UsageError: if its file cannot be read or is damaged.
        """
        file = self._file(key, ".json")
        try:
            data = json.loads(file.read_bytes())
            if data["outcome"] not in get_args(AnswerOutcome) or data["key"] != key:
                raise ValueError("not an answer")
            return Entry(**data)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"cannot read {file}: {reason_of(error)}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise UsageError(
                f"{file} is damaged: remove it to ask, and perhaps pay, that request again"
            ) from error

    def claim(self, key: str, *, sender: str = "", again: bool = False) -> Claim:
        """Takes a request to send it, and notes that on the disk.

        Args:
            key: key of the request.
            sender: name of the sender, which must be living; empty for this process.
            again: whether a lost request is sent, and perhaps paid, once more.
        """
        if self.entry(key) is not None:
            return "answered"
        note = self._file(key, ".sent")
        note.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._create(note, sender or self._name)
        except FileExistsError:
            earlier = self.sender(key)
            if earlier is None:  # it was answered, or released, in this moment
                return self.claim(key, sender=sender, again=again)
            if self._lives(earlier):
                return "in flight"
            if not again:
                return "lost"
            note.unlink(missing_ok=True)
            return self.claim(key, sender=sender)
        if self.entry(key) is not None:  # its sender finished between the two looks
            note.unlink(missing_ok=True)
            return "answered"
        return "mine"

    def _create(self, note: Path, sender: str) -> None:
        """Creates the note of a request with the name of its sender in it, on the disk.

        A link appears with its content, so no other process sees an empty note.

        Raises:
            FileExistsError: if the request has a note.
        """
        scratch = self._senders / f"{self._name}-{threading.get_ident()}.part"
        try:
            with scratch.open("w", encoding="utf-8") as file:
                file.write(sender)
                file.flush()
                os.fsync(file.fileno())
            os.link(scratch, note)
            flush(note.parent)
        finally:
            scratch.unlink(missing_ok=True)

    def keep(self, entry: Entry) -> None:
        """Keeps an answer, and removes the note of its request."""
        write_atomic(self._file(entry.key, ".json"), json.dumps(dataclasses.asdict(entry)) + "\n")
        self.release(entry.key)

    def release(self, key: str) -> None:
        """Removes the note of a request that was not sent, or that the server did not answer."""
        self._file(key, ".sent").unlink(missing_ok=True)

    def lost(self) -> list[str]:
        """Returns the keys of the requests whose sender was killed before the answer came."""
        notes = sorted(self.folder.glob("*/*.sent"))
        return [
            note.stem
            for note in notes
            if (sender := self.sender(note.stem)) is not None
            and not self._lives(sender)
            and self.entry(note.stem) is None
        ]

    def _file(self, key: str, end: str) -> Path:
        return self.folder / key[:2] / f"{key}{end}"

    def sender(self, key: str) -> str | None:
        """Returns the name of the sender of a request; None if it is not in flight."""
        try:
            return self._file(key, ".sent").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _lives(self, sender: str) -> bool:
        if sender == self._name:
            return True
        with suppress(FileNotFoundError), (self._senders / sender).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return True
        return False
