"""Answers on the disk: no request is asked, or paid, twice; and recorded answers as one file."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import atomic_file, write_atomic
from blip3o.core.log import say
from blip3o.remote.chat import Answer, AnswerOutcome, ChatImage, ChatModel, ChatRequest

_ENTRIES = "answers"
_SERVERS = "servers"


def describe(request: ChatRequest) -> dict[str, object]:
    """Returns a request as JSON, with the hash of each image instead of its bytes."""
    return {
        "system": request.system,
        "parts": [
            {"image": part.sha256, "media_type": part.media_type}
            if isinstance(part, ChatImage)
            else {"text": part}
            for part in request.parts
        ],
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "top_logprobs": request.top_logprobs,
        "attempt": request.attempt,
        "extra": dict(request.extra),
    }


def request_key(model: str, request: Mapping[str, object]) -> str:
    """Returns the key of a request in a cache: sha256 of the model's name and the request.

    Args:
        model: name and revision of the model, `ChatModel.name`.
        request: the request, from `describe`.
    """
    text = json.dumps({"model": model, "request": request}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _extended(request: ChatRequest, extra: Mapping[str, object]) -> ChatRequest:
    return dataclasses.replace(request, extra={**request.extra, **extra}) if extra else request


class CachedModel:
    """A `ChatModel` that asks another one only for answers that its folder does not hold.

    Each answer has its own file, so several processes can use the folder at the same time. Faults
    of the transport are never kept.

    Args:
        model: the model to ask.
        folder: folder of the answers; created if missing.
        extra: fields that are added to the body of each request; they replace those of the request.
    """

    def __init__(
        self, model: ChatModel, folder: Path, *, extra: Mapping[str, object] | None = None
    ) -> None:
        self.name = model.name
        self._model = model
        self._folder = folder
        self._extra = extra or {}
        self._mutex = threading.Lock()

    def missing(self, requests: Sequence[ChatRequest]) -> list[ChatRequest]:
        """Returns the requests that would be sent, for an estimate of their cost."""
        found: dict[str, ChatRequest] = {}
        for request in requests:
            full = _extended(request, self._extra)
            key = request_key(self.name, describe(full))
            if key not in found and read_entry(self._folder, key) is None:
                found[key] = full
        return list(found.values())

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        """Yields (position of the request, answer); known answers first, then each as it comes.

        Equal requests are asked once. Each answer is on the disk before it is yielded.
        """
        numbers: dict[str, list[int]] = {}
        batch: list[ChatRequest] = []
        for number, request in enumerate(requests):
            full = _extended(request, self._extra)
            key = request_key(self.name, describe(full))
            known = read_entry(self._folder, key)
            if known is not None:
                yield number, known
            elif key in numbers:
                numbers[key].append(number)
            else:
                numbers[key] = [number]
                batch.append(full)
        if not batch:
            return
        keys = list(numbers)
        for place, answer in self._model.answers(batch):
            kept = answer
            if answer.outcome != "transport":
                with self._mutex:
                    kept = _keep(self._folder, self.name, describe(batch[place]), answer)
                    _note_server(self._folder, self.name, answer)
            for number in numbers[keys[place]]:
                yield number, kept


def _entry_file(folder: Path, key: str) -> Path:
    return folder / _ENTRIES / key[:2] / f"{key}.json"


def read_entry(folder: Path, key: str) -> Answer | None:
    """Returns the answer that a cache holds under a key; None if it holds none.

    A damaged file counts as missing and is replaced.

    Raises:
        UsageError: if the file is there and cannot be read.
    """
    file = _entry_file(folder, key)
    try:
        entry = json.loads(file.read_bytes())
        if entry["key"] != key:
            raise ValueError("another key")
        return _answer_of(entry["answer"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {file}: {reason_of(error)}") from error
    except (ValueError, LookupError, TypeError):
        say(f"warning: {file} is damaged; the judge is asked again")
        return None


def _keep(folder: Path, model: str, request: Mapping[str, object], answer: Answer) -> Answer:
    """Stores an answer and returns it; the answer of a faster process, if there is one."""
    key = request_key(model, request)
    earlier = read_entry(folder, key)
    if earlier is not None:
        return earlier
    entry = {"key": key, "model": model, "request": request, "answer": dataclasses.asdict(answer)}
    file = _entry_file(folder, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(entry) + "\n", is_shared=True)
    return answer


def _note_server(folder: Path, model: str, answer: Answer) -> None:
    """Remembers the version that a server states, and warns if it is not the earlier one."""
    if not answer.model and not answer.fingerprint:  # a refusal by the server itself
        return
    stated = {"asked": model, "model": answer.model, "fingerprint": answer.fingerprint}
    text = json.dumps(stated, sort_keys=True)
    place = folder / _SERVERS / hashlib.sha256(model.encode()).hexdigest()[:16]
    file = place / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if file.exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    earlier = [json.loads(one.read_bytes()) for one in sorted(place.glob("*.json"))]
    if earlier:
        versions = sorted(_version(one) for one in earlier)
        say(
            f"warning: {model} is now answered by {_version(stated)}, earlier answers in {folder} "
            f"came from {', '.join(versions)}; to compare scores, ask all again in another folder"
        )
    write_atomic(file, text + "\n", is_shared=True)


def _version(stated: Mapping[str, str]) -> str:
    mark = f" ({stated['fingerprint']})" if stated["fingerprint"] else ""
    return (stated["model"] or "an unnamed model") + mark


def _answer_of(data: Mapping[str, Any]) -> Answer:
    """Returns an answer from JSON.

    Raises:
        ValueError: if it is not one (also a KeyError or a TypeError).
    """
    if data["outcome"] not in get_args(AnswerOutcome) or data["outcome"] == "transport":
        raise ValueError(f"unknown outcome {data['outcome']!r}")
    texts = [data[name] for name in ("text", "model", "fingerprint")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("the text, the model and the fingerprint are texts")
    return Answer(
        outcome=data["outcome"],
        text=data["text"],
        model=data["model"],
        fingerprint=data["fingerprint"],
        first_token=tuple((str(token), float(one)) for token, one in data["first_token"]),
        prompt_tokens=int(data["prompt_tokens"]),
        completion_tokens=int(data["completion_tokens"]),
    )


def export_answers(folder: Path, file: Path, model: str | None = None) -> int:
    """Writes the answers of a cache as JSON lines, in the order of their keys.

    Args:
        folder: folder of a cache.
        file: the file to write.
        model: only the answers of this model; None for all.

    Returns:
        The number of answers.

    Raises:
        UsageError: if the folder holds no such answers.
    """
    count = 0
    with atomic_file(file) as part, part.open("w", encoding="utf-8") as lines:
        for one in sorted((folder / _ENTRIES).glob("*/*.json")):
            entry = json.loads(one.read_bytes())
            if model is None or entry["model"] == model:
                lines.write(json.dumps(entry) + "\n")
                count += 1
        if not count:
            of = f" of {model}" if model else ""
            raise UsageError(f"{folder} holds no answers{of}: name the folder of a cache")
    return count


def import_answers(file: Path, folder: Path) -> int:
    """Adds recorded answers to a cache; answers that it already holds stay.

    Args:
        file: JSON lines from `export_answers`.
        folder: folder of the cache; created if missing.

    Returns:
        The number of new answers.

    Raises:
        UsageError: if the file is not such a record; nothing is added then.
    """
    entries = list(read_recorded(file))
    count = 0
    for entry in entries:
        if read_entry(folder, entry.key) is None:
            _keep(folder, entry.model, entry.request, entry.answer)
            _note_server(folder, entry.model, entry.answer)
            count += 1
    return count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """One recorded answer.

    Args:
        key: key of the request.
        model: name of the model that was asked.
        request: the request, from `describe`.
        answer: the answer.
    """

    key: str
    model: str
    request: Mapping[str, object]
    answer: Answer


def read_recorded(file: Path) -> Iterator[Recorded]:
    """Yields the answers of a file from `export_answers`.

    Raises:
        UsageError: if the file cannot be read, or a line is damaged or was edited; names the line.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                    model, request = entry["model"], entry["request"]
                    answer = _answer_of(entry["answer"])
                    is_own = entry["key"] == request_key(model, request)
                except (ValueError, LookupError, TypeError) as error:
                    raise UsageError(
                        f"{file}, line {number} is not a recorded answer: export it again"
                    ) from error
                if not is_own:
                    raise UsageError(
                        f"{file}, line {number}: the request was changed after it was recorded; "
                        "export it again"
                    )
                yield Recorded(key=entry["key"], model=model, request=request, answer=answer)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not a text in UTF-8: give recorded answers") from error
    except OSError as error:
        raise UsageError(f"cannot read {file}: {reason_of(error)}") from error


class RecordedModel:
    """A `ChatModel` that plays recorded answers and never asks a server.

    Args:
        file: JSON lines from `export_answers`.
        model: name of the model, if the file holds answers of several.
        extra: fields that were added to the body of each request.

    Raises:
        UsageError: if the file cannot be read, is empty, or does not hold answers of the model.
    """

    def __init__(
        self, file: Path, model: str | None = None, *, extra: Mapping[str, object] | None = None
    ) -> None:
        recorded = list(read_recorded(file))
        names = sorted({one.model for one in recorded})
        if not names:
            raise UsageError(f"{file} holds no recorded answers")
        if model is not None and model not in names:
            raise UsageError(f"{file} holds answers of {', '.join(names)}, not of {model}")
        if model is None and len(names) > 1:
            raise UsageError(f"{file} holds answers of several models: choose {' or '.join(names)}")
        self.name = model or names[0]
        self._file = file
        self._extra = extra or {}
        self._answers = {one.key: one.answer for one in recorded if one.model == self.name}

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        """Yields (position of the request, answer); "transport" for a request without a record."""
        unknown = Answer(
            outcome="transport",
            text=f"this request to {self.name} is not recorded in {self._file}",
        )
        for number, request in enumerate(requests):
            key = request_key(self.name, describe(_extended(request, self._extra)))
            yield number, self._answers.get(key, unknown)
