"""Asks a judge and reads its answers; an answer that cannot be read is never scored."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Outcome
from blip3o.remote.chat import Answer, ChatModel, ChatRequest

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(Generic[T]):
    """The result of one request after all its attempts.

    Args:
        outcome: "judged", or the reason why the last attempt gives no value.
        value: the value that was read; None unless judged.
        answers: all answers, in the order of the attempts.
    """

    outcome: Outcome
    value: T | None
    answers: tuple[Answer, ...]

    @property
    def texts(self) -> list[str]:
        """The text of each answer."""
        return [answer.text for answer in self.answers]

    def recorded(self) -> list[dict[str, str]]:
        """Returns all answers as JSON for a verdict: outcome, text, and the server's own names."""
        return [
            {
                "outcome": answer.outcome,
                "text": answer.text,
                "model": answer.model,
                "fingerprint": answer.fingerprint,
            }
            for answer in self.answers
        ]


def ask(
    model: ChatModel,
    requests: Sequence[ChatRequest],
    read: Callable[[str], T | None],
    *,
    attempts: int = 1,
) -> Iterator[tuple[int, Reading[T]]]:
    """Yields (position of the request, reading) as soon as a request needs no further attempt.

    Args:
        model: the judge.
        requests: the requests.
        read: returns the value of an answer's text, or None if it cannot be read. It is also
            applied to cut answers: a judgement may stand before the cut.
        attempts: most attempts of a request; only unreadable, empty, cut and refused answers are
            asked for again, because a client has its own attempts for transport errors.
    """
    earlier: dict[int, tuple[Answer, ...]] = {number: () for number in range(len(requests))}
    for attempt in range(attempts):
        open_numbers = sorted(earlier)
        batch = [
            dataclasses.replace(requests[number], attempt=requests[number].attempt + attempt)
            for number in open_numbers
        ]
        for place, answer in model.answers(batch):
            number = open_numbers[place]
            answers = (*earlier[number], answer)
            is_text = answer.outcome in {"answered", "cut"}
            value = read(answer.text) if is_text else None
            outcome: Outcome
            if value is not None:
                outcome = "judged"
            elif answer.outcome == "answered":
                outcome = "unreadable"
            else:
                outcome = answer.outcome
            if outcome in {"judged", "transport"} or attempt == attempts - 1:
                del earlier[number]
                yield number, Reading(outcome=outcome, value=value, answers=answers)
            else:
                earlier[number] = answers


def ask_each(
    model: ChatModel,
    requests: Sequence[Sequence[ChatRequest]],
    read: Callable[[str], T | None],
    *,
    attempts: int = 1,
) -> Iterator[tuple[int, list[Reading[T]]]]:
    """Yields (position of a group, readings of its requests) as soon as all of a group are there.

    Args:
        model: the judge.
        requests: groups of requests, such as the questions about each sample.
        read: as for `ask`.
        attempts: as for `ask`.
    """
    places = [(group, place) for group, some in enumerate(requests) for place in range(len(some))]
    flat = [requests[group][place] for group, place in places]
    readings: dict[int, dict[int, Reading[T]]] = {group: {} for group in range(len(requests))}
    for group in [group for group, some in enumerate(requests) if not some]:
        yield group, list(readings.pop(group).values())
    for number, reading in ask(model, flat, read, attempts=attempts):
        group, place = places[number]
        readings[group][place] = reading
        if len(readings[group]) == len(requests[group]):
            yield group, [reading for _, reading in sorted(readings.pop(group).items())]


def ask_first_tokens(
    model: ChatModel, requests: Sequence[Sequence[ChatRequest]], *, attempts: int = 1
) -> Iterator[tuple[int, list[Reading[str]]]]:
    """Yields the readings of each group, as `ask_each`, with the probabilities of first tokens.

    An answer without a text is judged as well if its first token is known.

    Args:
        model: the judge.
        requests: groups of requests with `top_logprobs`.
        attempts: as for `ask`.

    Raises:
        UsageError: if the judge answers without probabilities.
    """
    for group, readings in ask_each(model, requests, str, attempts=attempts):
        known: list[Reading[str]] = []
        for reading in readings:
            answer = reading.answers[-1]
            if reading.outcome == "judged" and not answer.first_token:
                raise UsageError(
                    f"{model.name} answers without the probabilities of tokens, from which the "
                    "score is made: use a server with logprobs"
                )
            if reading.outcome == "empty" and answer.first_token:
                reading = dataclasses.replace(reading, outcome="judged", value="")
            known.append(reading)
        yield group, known


def worst_outcome(readings: Iterable[Reading[T]]) -> Outcome:
    """Returns "judged" if all requests gave a value, else the reason of the first that gave none.

    A transport error precedes all others, because asking again may remove it.
    """
    faults = [reading.outcome for reading in readings if reading.outcome != "judged"]
    if not faults:
        return "judged"
    return "transport" if "transport" in faults else faults[0]


def token_probability(answer: Answer, spellings: Collection[str]) -> float:
    """Returns the probability that the first token of an answer is one of some spellings.

    A token that the server does not list has the probability 0, and each token counts once.

    Args:
        answer: the answer to a request with `top_logprobs`.
        spellings: the tokens, with their leading spaces.
    """
    found = (math.exp(log) for token, log in answer.first_token if token in spellings)
    return min(1.0, sum(found))  # a server may round logarithms up


YES_SPELLINGS = ("Yes", "yes", " yes", " Yes")
