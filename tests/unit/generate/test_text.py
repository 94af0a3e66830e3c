"""Answers: greedy decoding with a cache, batches, streaming, conversations."""

import io
from typing import Any

import pytest
import torch
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.chat import converse
from blip3o.generate.decoding import RowDecoder
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text import generate_tokens, left_pad
from blip3o.text.chat import ChatTemplate

RED, BLUE = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
NO_STOP = 319


def user(text: str) -> Message:
    return Message(role="user", text=text)


def rows_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(10, 300, (n,), generator=generator).tolist() for n in lengths]


def generate(
    pipe: Blip3oPipeline, rows: list[list[int]], stop_id: int = NO_STOP, most: int = 6
) -> list[list[int]]:
    ids, mask = left_pad(rows, pipe.tokenizer.pad_id)
    steps = generate_tokens(
        RowDecoder(pipe.model),
        ids,
        mask,
        None,
        stop_id=stop_id,
        pad_id=pipe.tokenizer.pad_id,
        max_new_tokens=most,
    )
    return torch.stack(list(steps), dim=1).tolist()


def test_left_padding() -> None:
    ids, mask = left_pad([[1], [2, 3, 4]], 9)
    assert ids.tolist() == [[9, 9, 1], [2, 3, 4]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]


def test_cached_decoding_equals_a_full_pass_for_every_token(tiny_pipe: Blip3oPipeline) -> None:
    (row,) = rows_of(5)
    expected = list(row)
    for _ in range(6):
        ids = torch.tensor([expected])
        with torch.no_grad():
            hidden = tiny_pipe.model.text_states(ids, torch.ones_like(ids, dtype=torch.bool))
            expected.append(int(tiny_pipe.model.backbone.logits(hidden[0, -1]).argmax()))
    assert generate(tiny_pipe, [row]) == [expected[5:]]


def test_rows_of_different_lengths_answer_as_they_do_alone(tiny_pipe: Blip3oPipeline) -> None:
    rows = rows_of(3, 9, 6)
    alone = [generate(tiny_pipe, [row])[0] for row in rows]
    assert generate(tiny_pipe, rows) == alone


def test_a_stopped_row_is_padded_while_the_others_go_on(tiny_pipe: Blip3oPipeline) -> None:
    rows = rows_of(3, 9, 6)
    plain = generate(tiny_pipe, rows)
    # The token that ends one row early is one of the row's own tokens.
    stop = next(t for answer in plain for t in answer[:2])
    pad = tiny_pipe.tokenizer.pad_id
    for answer, full in zip(generate(tiny_pipe, rows, stop), plain, strict=True):
        end = full.index(stop) + 1 if stop in full else len(full)
        expected = full[:end] + [pad] * (len(answer) - end)
        assert answer == expected[: len(answer)]


def test_decoding_ends_when_every_row_has_stopped(tiny_pipe: Blip3oPipeline) -> None:
    (row,) = rows_of(4)
    first = generate(tiny_pipe, [row])[0][0]
    assert generate(tiny_pipe, [row], stop_id=first) == [[first]]


def test_the_end_of_a_text_ends_an_answer(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Released models end some answers with this token; the tokens after it are nonsense."""
    pad, plain = tiny_pipe.tokenizer.pad_id, RowDecoder.advance
    said: list[None] = []

    def ends(*given: Any) -> torch.Tensor:
        logits = plain(*given)
        logits[:1, pad] += 1e4 * (not said)  # the first row's second token
        said.append(None)
        return logits

    rows = rows_of(3, 9)
    full = generate(tiny_pipe, rows)
    monkeypatch.setattr(RowDecoder, "advance", ends)
    first, second = generate(tiny_pipe, rows)
    assert first == [full[0][0]] + [pad] * 5
    assert second == full[1]
    said.clear()
    assert generate(tiny_pipe, rows[:1]) == [[full[0][0], pad]]


def test_answers_carry_no_gradient_even_when_read_late(tiny_pipe: Blip3oPipeline) -> None:
    ids, mask = left_pad(rows_of(4), 0)
    steps = generate_tokens(
        RowDecoder(tiny_pipe.model), ids, mask, None, stop_id=NO_STOP, pad_id=0, max_new_tokens=2
    )
    assert torch.is_grad_enabled()
    assert not any(token.requires_grad for token in steps)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("image", [None, RED])
def test_an_answer_never_holds_the_placeholder_of_an_image(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch, image: Any
) -> None:
    """The placeholder may be the likeliest token, but an answer has no image for it."""
    placeholder = tiny_pipe.tokenizer.image_pad_id
    plain = tiny_pipe.model.backbone.logits

    def tempted(hidden: torch.Tensor) -> torch.Tensor:
        logits = plain(hidden)
        logits[..., placeholder] = logits.max() + 1
        return logits

    expected = tiny_pipe.ask(image, "What is this?")
    monkeypatch.setattr(tiny_pipe.model.backbone, "logits", tempted)
    assert placeholder not in generate(tiny_pipe, rows_of(3, 9))[0]
    assert tiny_pipe.ask(image, "What is this?") == expected


def test_a_stream_is_the_answer_in_pieces(tiny_pipe: Blip3oPipeline) -> None:
    message = user(f"{IMAGE_MARK}\nWhat is this?")
    pieces = list(tiny_pipe.stream([message], [RED]))
    answer = tiny_pipe.ask(RED, "What is this?")
    assert "".join(pieces).strip() == answer
    assert tiny_pipe.ask([RED], " What is this? ") == answer


def test_questions_with_no_one_and_two_images(tiny_pipe: Blip3oPipeline) -> None:
    for images in (None, [], RED, [RED, BLUE], (RED, BLUE)):
        assert isinstance(tiny_pipe.ask(images, "What is this?"), str)


def test_a_batch_of_questions_equals_each_alone(tiny_pipe: Blip3oPipeline) -> None:
    questions = ["What?", "What is in this picture, and where?", "Why?"]
    images = [RED, BLUE, RED]
    answers = tiny_pipe.answer_batch(images, questions, max_new_tokens=6)
    alone = [tiny_pipe.ask(p, q) for p, q in zip(images, questions, strict=True)]
    assert answers == alone
    assert tiny_pipe.answer_batch([], []) == []


def test_answers_end_at_their_limit_and_at_the_last_position(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatTemplate, "turn_end_id", -1)  # no token
    monkeypatch.setattr(type(tiny_pipe.tokenizer), "pad_id", -1)
    advance, passes = RowDecoder.advance, []

    def counted(*arguments: Any) -> torch.Tensor:
        passes.append(arguments)
        return advance(*arguments)

    monkeypatch.setattr(RowDecoder, "advance", counted)
    room = 96 - tiny_pipe.prompt_length([user("hello")])
    for asked, written in ((4, 4), (None, 6), (10_000, room)):
        passes.clear()
        tiny_pipe.ask(None, "hello", max_new_tokens=asked)
        assert len(passes) == written - 1


@pytest.mark.parametrize(
    ("images", "question", "options", "message"),
    [
        (RED, "", {}, "the question is empty"),
        (RED, "  ", {}, "the question is empty"),
        (RED, "cat " * 200, {}, "the conversation has .* tokens; at most 92"),
        (RED, "like <image>?", {}, "2 image marks in the messages for 1 images"),
        (None, "What is <image>?", {}, "1 image marks in the messages for 0 images"),
        ([RED] * 30, "What?", {}, "the conversation has .* tokens"),
        (RED, "What?", {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (RED, "What?", {"max_new_tokens": -1}, "max_new_tokens must be at least 1, got -1"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(
    tiny_pipe: Blip3oPipeline,
    images: Any,
    question: str,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_pipe.ask(images, question, **options)


def test_batches_that_do_not_fit_are_refused(tiny_pipe: Blip3oPipeline) -> None:
    with pytest.raises(UsageError, match="1 images for 2 questions"):
        tiny_pipe.answer_batch([RED], ["a", "b"])
    with pytest.raises(UsageError, match="2 image marks"):
        tiny_pipe.answer_batch([RED], ["<image>"])
    with pytest.raises(UsageError, match="a question is empty"):
        tiny_pipe.answer_batch([RED, RED], ["a", " "])


def test_a_conversation_keeps_its_turns_and_reports_errors(tiny_pipe: Blip3oPipeline) -> None:
    asked: list[tuple[list[Message], int]] = []

    class Echo:
        def stream(self, messages: list[Message], images: list[Any]) -> Any:
            asked.append((list(messages), len(images)))
            if "refuse" in messages[-1].text:
                raise UsageError("too long")
            yield from ("I see ", f"{len(images)} ")

    def say(*lines: str) -> str:
        asked.clear()
        out = io.StringIO()
        converse(Echo(), io.StringIO("".join(line + "\n" for line in lines)), out)  # type: ignore[arg-type]
        return out.getvalue()

    assert "I see 0 \n> \n" in say("hello", "/quit", "never read")
    assert asked == [([user("hello")], 0)]
    say("one", "", "two")  # the input simply ends
    assert asked[1][0] == [
        user("one"),
        Message(role="assistant", text="I see 0"),
        user("two"),
    ]
    say("one", "/new", "two")
    assert asked[1] == ([user("two")], 0)
    text = say("/image no-such-file.png", "/frobnicate", "still here")
    assert "(no such image: no-such-file.png)" in text
    assert "(unknown command /frobnicate;" in text
    assert asked == [([user("still here")], 0)]
    assert "(too long)" in say("refuse this", "go on")
    assert asked[1] == ([user("go on")], 0)


def test_a_conversation_continues_after_an_answer_with_an_image_mark() -> None:
    asked: list[list[Message]] = []

    class Html:
        def stream(self, messages: list[Message], images: list[Any]) -> Any:
            asked.append(list(messages))
            yield f"write {IMAGE_MARK} there"

    out = io.StringIO()
    converse(Html(), io.StringIO("how?\nand then?\n"), out)  # type: ignore[arg-type]
    assert out.getvalue().count(f"write {IMAGE_MARK} there") == 2
    assert asked[1][1] == Message(role="assistant", text="write (an image) there")


def test_an_image_belongs_to_the_next_message_and_stays(
    tiny_pipe: Blip3oPipeline, tmp_path: Any
) -> None:
    RED.save(tmp_path / "red.png")
    lines = io.StringIO(f"/image {tmp_path / 'red.png'}\nWhat is this?\nSure?\n")
    out = io.StringIO()
    converse(tiny_pipe, lines, out)
    assert "(1 image added)" in out.getvalue()
    assert "image marks" not in out.getvalue()
    assert out.getvalue().count("> ") == 4


def test_a_drawn_answer_is_the_same_streamed_asked_and_in_a_batch(
    tiny_pipe: Blip3oPipeline,
) -> None:
    questions = ["What?", "What is in this picture, and where?", "Why?"]
    settings: dict[str, Any] = {"temperature": 3.0, "top_p": 0.95, "seed": 8}
    batch = tiny_pipe.answer_batch([RED, BLUE, RED], questions, 20, **settings)
    alone = []
    for image, question in zip([RED, BLUE, RED], questions, strict=True):
        asked = tiny_pipe.ask(image, question, max_new_tokens=20, **settings)
        message = user(f"{IMAGE_MARK}\n{question}")
        pieces = list(tiny_pipe.stream([message], [image], max_new_tokens=20, **settings))
        assert "".join(pieces).strip() == asked
        alone.append(asked)
    assert batch == alone
    assert len(set(batch)) == 3
    greedy = [tiny_pipe.ask(RED, "Why?"), tiny_pipe.ask(RED, "Why?", temperature=0.0, seed=3)]
    assert greedy[0] == greedy[1] != alone[2]
    assert len({tiny_pipe.ask(RED, "Why?", temperature=5.0) for _ in range(5)}) > 1


def test_a_stop_text_ends_an_answer_wherever_it_is_written(tiny_pipe: Blip3oPipeline) -> None:
    settings: dict[str, Any] = {"temperature": 3.0, "seed": 8, "max_new_tokens": 20}
    message = user(f"{IMAGE_MARK}\nWhy?")
    whole = "".join(tiny_pipe.stream([message], [RED], **settings))
    assert len(whole) > 10
    for start in range(len(whole)):
        for length in (1, 2, 5):
            stop = whole[start : start + length]
            expected = whole[: whole.index(stop)]
            pieces = list(tiny_pipe.stream([message], [RED], stop=stop, **settings))
            assert "".join(pieces) == expected
            assert tiny_pipe.ask(RED, "Why?", stop=[stop, "never"], **settings) == expected.strip()
    (batched, other) = tiny_pipe.answer_batch(
        [RED, BLUE], ["Why?", "What?"], 20, temperature=3.0, seed=8, stop=whole[6:8]
    )
    assert batched == whole[: whole.index(whole[6:8])].strip()
    stopped = tiny_pipe.ask(BLUE, "What?", stop=whole[6:8], **settings)
    assert other == stopped
