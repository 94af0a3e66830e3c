"""Asks a judge and reads its answers; an answer that cannot be read is never scored."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

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
