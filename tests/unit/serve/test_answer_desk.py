"""Concurrent answers: each equals the answer alone, whichever others come, leave, fail or wait."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.decoding import RowDecoder
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text_sampling import TextSampling
from blip3o.serve import failures
from blip3o.serve.answers import AnswerDesk
from blip3o.serve.jobs import Answered, ChatRequest, Event, Failed, Job, Text

RED, BLUE = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))


TOGETHER: list[int] = []
"""Number of answers that may share a forward pass on this machine."""


@pytest.fixture(autouse=True, scope="module")
def _try_the_machine(tiny_pipe: Blip3oPipeline) -> None:
    TOGETHER.append(RowDecoder(tiny_pipe.model).num_equal_places())


class Client:
    """A chat and its events."""

    def __init__(
        self, text: str, images: Sequence[Image.Image] = (), count: int = 1, **settings: Any
    ) -> None:
        settings = {"temperature": 0.0, "max_new_tokens": 12, **settings}
        self.text, self.images, self.settings, self.count = text, list(images), settings, count
        words = f"{IMAGE_MARK}\n" * len(self.images) + text
        request = ChatRequest(
            messages=[Message(role="user", text=words)],
            images=self.images,
            sampling=TextSampling.of(**settings),
            count=count,
        )
        self.events: list[Event] = []
        self.job = Job(request, self.events.append)

    @property
    def answers(self) -> list[str]:
        """Texts of the answers, by number."""
        said = [""] * self.count
        for event in self.events:
            if isinstance(event, Text):
                said[event.index] += event.piece
        return said

    @property
    def ends(self) -> list[Answered]:
        found = [event for event in self.events if isinstance(event, Answered)]
        return sorted(found, key=lambda end: end.index)

    @property
    def failed(self) -> Failed | None:
        return next((event for event in self.events if isinstance(event, Failed)), None)

    def alone(self, pipe: Blip3oPipeline) -> list[str]:
        """Answers of the pipeline, one per seed."""
        seed = self.settings.get("seed") or 0
        said = []
        for number in range(self.count):
            settings: Any = {**self.settings, "seed": seed + number}
            said.append(pipe.ask(self.images, self.text, **settings))
        return said


def mixed() -> list[Client]:
    return [
        Client("what is this?", [RED]),
        Client("a dog", temperature=2.0, seed=1, max_new_tokens=20),
        Client("a much longer text about a red cat, a dog and this", max_new_tokens=3),
        Client("what is this?", [RED, BLUE], temperature=1.0, seed=2, top_p=0.9),
        Client("make it blue", temperature=3.0, seed=3, count=3, top_k=100),
        Client("draw", count=2),
        Client("x", [BLUE], temperature=2.0, seed=1, max_new_tokens=1),
        Client("a dog", temperature=2.0, seed=9, max_new_tokens=30, stop=("e", "a")),
        Client("a red cat", temperature=2.0, seed=12, count=4, max_new_tokens=8),
    ]


def desk_of(pipe: Blip3oPipeline, queue: deque[Job], **options: Any) -> AnswerDesk:
    options = {"max_answers": 8, "max_tokens": 10**6, "together": TOGETHER[0], **options}
    take = lambda: queue.popleft() if queue else None  # noqa: E731
    return AnswerDesk(pipe, take, lambda seconds: None, **options)


def serve(pipe: Blip3oPipeline, clients: Sequence[Client], every: int = 0, **options: Any) -> None:
    """Lets a client arrive after every few rounds, and serves until all are done."""
    queue: deque[Job] = deque()
    desk = desk_of(pipe, queue, **options)
    waiting, rounds = deque(clients), 0
    while waiting or queue or desk.is_busy:
        while waiting and (not every or rounds % every == 0):
            queue.append(waiting.popleft().job)
            if every:
                break
        desk.work(0.0)
        rounds += 1
        assert rounds < 1000
    assert desk.jobs == []


def check(pipe: Blip3oPipeline, clients: Sequence[Client]) -> None:
    for client in clients:
        assert [said.strip() for said in client.answers] == client.alone(pipe), client.text
        assert [end.index for end in client.ends] == list(range(client.count))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": 1},
        {"every": 5},
        {"max_answers": 1},
        {"max_answers": 3, "every": 1},
        {"max_answers": 20},
        {"together": 1},
        {"together": 3},
        {"max_tokens": 60},
    ],
)
def test_answers_are_the_same_alone_and_with_others(
    tiny_pipe: Blip3oPipeline, options: dict[str, int]
) -> None:
    clients = mixed()
    serve(tiny_pipe, clients, **options)
    check(tiny_pipe, clients)
    turned = mixed()
    serve(tiny_pipe, turned[::-1], **options)
    assert [client.answers for client in turned] == [client.answers for client in clients]


def test_answers_of_the_bundled_model_in_half_precision_are_the_same() -> None:
    """This model has nearly equal logits, and it uses the kernels of real models."""
    pipe = Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="bf16")
    clients = [
        Client("what is in the image?", [RED], max_new_tokens=30),
        Client("what is in the image?", [BLUE], temperature=1.0, seed=4, count=3),
        Client("how many are there?", [BLUE], temperature=1.5, seed=5, max_new_tokens=25),
        Client("describe the image", [RED], temperature=0.8, seed=6, max_new_tokens=40),
        Client("hello", max_new_tokens=20),
    ]
    serve(pipe, clients, every=2, together=RowDecoder(pipe.model).num_equal_places())
    check(pipe, clients)


def test_logits_have_the_bits_that_they_have_alone(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = RowDecoder.advance, []

    def noted(decoder: Any, rows: Any, tokens: Any) -> Tensor:
        logits = plain(decoder, rows, tokens)
        seen.append(list(zip(tokens, logits, strict=True)))
        return logits

    monkeypatch.setattr(RowDecoder, "advance", noted)
    alone: list[Tensor] = []
    for client in mixed()[:3]:
        serve(tiny_pipe, [client])
        alone += [logits for ((_, logits),) in seen]
        seen.clear()
    serve(tiny_pipe, mixed()[:3], every=1)
    together = [logits for step in seen for _, logits in step]
    assert len(together) == len(alone)
    for logits in together:
        assert any(torch.equal(logits, one) for one in alone)


def test_a_request_for_several_answers_is_read_once(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, read = RowDecoder.read, []

    def noted(*arguments: Any) -> Any:
        read.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(RowDecoder, "read", noted)
    for count, most in ((4, 8), (20, 8), (5, 1)):
        read.clear()
        client = Client("a dog", count=count, temperature=2.0, seed=7)
        serve(tiny_pipe, [client], max_answers=most)
        assert len(read) == 1
        assert len(set(client.answers)) > 1
        check(tiny_pipe, [client])
    read.clear()
    several = tiny_pipe.ask_several(None, "a dog", 20, temperature=2.0, seed=7, max_new_tokens=12)
    assert sum(len(ids) > 8 for _, ids, _ in read) == 1  # except those that probe the machine
    assert several == Client("a dog", count=20, temperature=2.0, seed=7).alone(tiny_pipe)
    with pytest.raises(UsageError, match="num_answers must be at least 1"):
        tiny_pipe.ask_several(None, "a dog", 0)


def test_clients_that_leave_free_their_place_and_change_no_other_answer(
    tiny_pipe: Blip3oPipeline,
) -> None:
    clients = mixed()
    leaving = [clients[1], clients[4], clients[8]]
    queue = deque(client.job for client in clients)
    desk = desk_of(tiny_pipe, queue, max_answers=4)
    for client in leaving:
        plain = client.job.deliver

        def leave(event: Event, client: Client = client, plain: Any = plain) -> None:
            plain(event)
            client.job.cancel()

        client.job.deliver = leave
    while queue or desk.is_busy:
        desk.work(0.0)
        if not queue:
            gone = {id(client.job) for client in leaving if client.events}
            desk.work(0.0)
            assert not gone & {id(job) for job in desk.jobs}
    check(tiny_pipe, [client for client in clients if client not in leaving])
    # At most the round of its first word: a request for several answers gets several words.
    assert all(len(client.events) <= client.count + 1 for client in leaving)


def test_a_new_request_delays_others_by_at_most_one_prompt(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("read", "advance"):
        plain = getattr(RowDecoder, name)

        def noted(*arguments: Any, name: str = name, plain: Any = plain) -> Any:
            order.append(name)
            return plain(*arguments)

        monkeypatch.setattr(RowDecoder, name, noted)
    serve(tiny_pipe, [Client(f"a dog {n}", max_new_tokens=9) for n in range(8)])
    assert order.count("read") == 8
    reads = "".join("r" if name == "read" else "a" for name in order)
    assert "rr" not in reads


def test_concurrent_answers_stay_within_the_token_limit(
    tiny_pipe: Blip3oPipeline,
) -> None:
    clients = [Client("a dog", max_new_tokens=10, temperature=2.0, seed=n) for n in range(6)]
    queue = deque(client.job for client in clients)
    length = tiny_pipe.prompt_length([Message(role="user", text="a dog")]) + 10
    desk = desk_of(tiny_pipe, queue, max_tokens=2 * length + 1)
    most = 0
    while queue or desk.is_busy:
        desk.work(0.0)
        most = max(most, len(desk._rows))
    assert most == 2
    check(tiny_pipe, clients)
    alone = [Client("a dog", max_new_tokens=10, seed=n) for n in range(2)]
    serve(tiny_pipe, alone, max_tokens=3)  # less than any answer needs, but each is still written
    check(tiny_pipe, alone)


def cpu_is_full() -> RuntimeError:
    return RuntimeError(
        "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
    )


@pytest.mark.parametrize(
    "error", [MemoryError, cpu_is_full, torch.OutOfMemoryError, lambda: RuntimeError("odd")]
)
@pytest.mark.parametrize("place", ["read", "advance", "add"])
def test_a_failure_ends_only_its_request(
    tiny_pipe: Blip3oPipeline,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Any,
    place: str,
) -> None:
    bad = Client("a dog", temperature=2.0, seed=4, count=2)
    others = [client for client in mixed() if client.text != "a dog"]
    expected = [client.alone(tiny_pipe) for client in others]
    bad_ids = tiny_pipe.chat_template.text_prompt(bad.job.request.messages)  # type: ignore[union-attr]
    read, advance = RowDecoder.read, RowDecoder.advance
    bad_rows: list[Any] = []

    def reads(decoder: Any, ids: Any, images: Any) -> Any:
        if list(ids) != bad_ids:
            return read(decoder, ids, images)
        if place == "read":
            raise error()
        prompt = read(decoder, ids, images)
        fork = type(prompt.row).fork

        def forked() -> Any:
            bad_rows.append(fork(prompt.row))
            return bad_rows[-1]

        prompt.row.fork = forked
        return prompt

    def advances(decoder: Any, rows: Any, tokens: Any) -> Tensor:
        if place == "advance" and any(row is one for row in rows for one in bad_rows):
            raise error()
        logits = advance(decoder, rows, tokens)
        if place == "add":
            for number, row in enumerate(rows):
                if any(row is one for one in bad_rows):
                    logits[number] = torch.nan
        return logits

    monkeypatch.setattr(RowDecoder, "read", reads)
    monkeypatch.setattr(RowDecoder, "advance", advances)
    serve(tiny_pipe, [others[0], bad, *others[1:]])
    for client, answers in zip(others, expected, strict=True):
        assert [said.strip() for said in client.answers] == answers
    assert sum(isinstance(event, Failed) for event in bad.events) == 1
    assert bad.failed is not None
    assert bad.failed.kind == "work"
    assert bad.ends == []
    if place != "add":
        is_memory = not isinstance(error(), RuntimeError) or "odd" not in str(error())
        assert ("too little memory" in bad.failed.message) == is_memory
    assert "a request failed" in capsys.readouterr().err


def test_a_device_error_reaches_the_engine(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.AcceleratorError in failures.DEVICE_ERRORS

    class LostError(RuntimeError):
        pass

    monkeypatch.setattr("blip3o.serve.answers.DEVICE_ERRORS", (LostError,))
    for name in ("read", "advance"):
        client = Client("a dog")
        desk = desk_of(tiny_pipe, deque([client.job]))
        with monkeypatch.context() as patch:
            patch.setattr(RowDecoder, name, lambda *_: (_ for _ in ()).throw(LostError()))
            with pytest.raises(LostError):
                desk.work(10.0)
        assert desk.jobs == [client.job]  # the clients to notify


def test_the_end_reports_reason_and_length(tiny_pipe: Blip3oPipeline) -> None:
    whole = Client("a dog", temperature=2.0, seed=9, max_new_tokens=30)
    serve(tiny_pipe, [whole])
    text = whole.answers[0]
    stop = text[len(text) // 2 :][:2]
    stopped = Client("a dog", temperature=2.0, seed=9, max_new_tokens=30, stop=stop)
    short = Client("a dog", temperature=2.0, seed=9, max_new_tokens=2)
    serve(tiny_pipe, [stopped, short])
    assert stopped.answers == [text[: text.index(stop)]]
    (end,) = stopped.ends
    assert (end.reason, end.answer_tokens <= whole.ends[0].answer_tokens) == ("stop", True)
    (end,) = short.ends
    assert (end.reason, end.answer_tokens) == ("length", 2)
    length = tiny_pipe.prompt_length(short.job.request.messages)  # type: ignore[union-attr]
    assert end.prompt_tokens == length


def test_a_conversation_that_does_not_fit_is_refused(tiny_pipe: Blip3oPipeline) -> None:
    long, marks, good = Client("red " * 200), Client("like <image>?"), Client("a dog")
    serve(tiny_pipe, [long, marks, good])
    for client, words in ((long, "at most 92 fit"), (marks, "1 image marks")):
        assert client.failed is not None
        assert (client.failed.kind, words in client.failed.message) == ("request", True)
    check(tiny_pipe, [good])


@pytest.mark.parametrize("places", [8, 6, 1])
def test_answers_share_a_pass_only_if_their_places_do_not_matter(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    decoder = RowDecoder(tiny_pipe.model)
    most = decoder.num_equal_places()
    assert 1 <= most <= 8
    plain = RowDecoder._pass

    def by_place(*given: Any) -> Tensor:
        logits = plain(*given)
        logits[places:] += 1e-6
        return logits

    monkeypatch.setattr(RowDecoder, "_pass", by_place)
    assert RowDecoder(tiny_pipe.model).num_equal_places() == min(places, most)


def test_different_rounding_inside_a_network_is_detected(tiny_pipe: Blip3oPipeline) -> None:
    """Most of these differences do not change the logits."""
    layers = list(tiny_pipe.model.backbone.decoder.layers)

    def by_place(layer: Any, inputs: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[5:] = torch.nextafter(output[5:], output.new_tensor(9e9))
        return changed

    hook = layers[-1].get_submodule("mlp.gate_proj").register_forward_hook(by_place)
    assert RowDecoder(tiny_pipe.model).num_equal_places() <= 5
    hook.remove()
