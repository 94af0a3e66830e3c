"""Arguments of a wrong type raise an error of one line before any work."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blip3o
from blip3o.core.errors import UsageError
from blip3o.generate.pipeline import Blip3oPipeline

Call = Callable[[Any], Any]

CALLS: list[tuple[str, Call]] = [
    ("the prompt must be a text, got 3", lambda pipe: pipe(3)),
    ("the prompt must be a text, got None", lambda pipe: pipe(None)),
    ("the prompt must be a text, got 3", lambda pipe: pipe(["a cat", 3])),
    ("the prompt must be a text, got b'a'", lambda pipe: pipe(b"a")),
    ("the prompt must be a text, got {'a': 1}", lambda pipe: pipe({"a": 1})),
    ("the prompt must be a text, got ['a']", lambda pipe: pipe([["a"]])),
    ("no prompt was given", lambda pipe: pipe([])),
    ("the prompt is empty", lambda pipe: pipe("")),
    ("a generator is torch.Generator", lambda pipe: pipe("a", generator=0)),
    ("a generator is torch.Generator", lambda pipe: pipe("a", generator=[0])),
    ("a generator is torch.Generator", lambda pipe: pipe("a", generator="0")),
    ("2 generators for 1 images", lambda pipe: pipe("a", generator=[torch.Generator()] * 2)),
    ("num_inference_steps must be a whole", lambda pipe: pipe("a", num_inference_steps=2.5)),
    ("num_inference_steps must be a whole", lambda pipe: pipe("a", num_inference_steps="2")),
    ("num_inference_steps must be 1 to", lambda pipe: pipe("a", num_inference_steps=True)),
    ("num_inference_steps must be 1 to", lambda pipe: pipe("a", num_inference_steps=0)),
    ("guidance_scale must be 1 to 100", lambda pipe: pipe("a", guidance_scale="2")),
    ("guidance_scale must be 1 to 100", lambda pipe: pipe("a", guidance_scale=[2])),
    ("guidance_scale must be 1 to 100", lambda pipe: pipe("a", guidance_scale=float("nan"))),
    ("number of images must be a whole", lambda pipe: pipe("a", num_images_per_prompt=1.5)),
    ("number of images must be a whole", lambda pipe: pipe("a", num_images_per_prompt=None)),
    ("num_decoder_steps must be a whole", lambda pipe: pipe("a", num_decoder_steps="1")),
    ("unknown output_type 3", lambda pipe: pipe("a", output_type=3)),
    ("unknown output_type ['pil']", lambda pipe: pipe("a", output_type=["pil"])),
    ("callback_on_step_end must be a function", lambda pipe: pipe("a", callback_on_step_end=3)),
    ("the instruction must be a text, got 3", lambda pipe: pipe.edit("a.png", 3)),
    ("an image is a file", lambda pipe: pipe.edit(3, "a")),
    ("an image is a file", lambda pipe: pipe.edit(None, "a")),
    ("an image is a file", lambda pipe: pipe.reconstruct(3)),
    ("an image is a file", lambda pipe: pipe.encode(3)),
    ("no image was given", lambda pipe: pipe.encode([])),
    ("the question must be a text, got 3", lambda pipe: pipe.ask(None, 3)),
    ("the question must be a text, got None", lambda pipe: pipe.ask(None, None)),
    ("an image is a file", lambda pipe: pipe.ask(3, "what?")),
    ("a turn of a conversation is blip3o.Message", lambda pipe: list(pipe.stream("hello"))),
    ("a turn of a conversation is", lambda pipe: list(pipe.stream([{"role": "user"}]))),
    ("a turn of a conversation is", lambda pipe: list(pipe.stream(None))),
    ("the question must be a text, got 3", lambda pipe: pipe.answer_batch(["a.png"], [3])),
    ("max_new_tokens must be a whole", lambda pipe: pipe.ask(None, "a", max_new_tokens=2.5)),
    ("max_new_tokens must be a whole", lambda pipe: pipe.ask(None, "a", max_new_tokens="2")),
    ("max_new_tokens must be a whole", lambda pipe: pipe.ask(None, "a", max_new_tokens=True)),
    ("top_k must be a whole", lambda pipe: pipe.ask(None, "a", top_k=None)),
    ("seed must be a whole", lambda pipe: pipe.ask(None, "a", seed=1.5)),
    ("temperature must be a number", lambda pipe: pipe.ask(None, "a", temperature="hot")),
    ("temperature must be a number", lambda pipe: pipe.ask(None, "a", temperature=None)),
    ("temperature must be 0 or more", lambda pipe: pipe.ask(None, "a", temperature=float("nan"))),
    ("top_p must be a number", lambda pipe: pipe.ask(None, "a", top_p=[1])),
    ("the stop text must be a text, got 3", lambda pipe: pipe.ask(None, "a", stop=[3])),
    ("the stop text must be a text, got 3", lambda pipe: pipe.ask(None, "a", stop=3)),
]


@pytest.mark.parametrize(("message", "call"), CALLS, ids=range(len(CALLS)))
def test_wrong_types_raise_an_error_of_one_line(
    tiny_pipe: Blip3oPipeline, message: str, call: Call
) -> None:
    with pytest.raises(UsageError) as caught:
        call(tiny_pipe)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


LOADS: list[dict[str, Any]] = [
    {"dtype": 3},
    {"device": "x"},
    {"quantize": 4},
    {"offload": True},
    {"overrides": "sampling.num_decoder_steps"},
    {"overrides": ["sampling.num_decoder_step=3"]},
]


@pytest.mark.parametrize("settings", LOADS, ids=str)
def test_wrong_forms_of_a_model_raise_an_error_of_one_line(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Blip3oPipeline.from_pretrained("pocket", **settings)


def test_numbers_of_other_libraries_and_any_iterable_are_accepted(
    tiny_pipe: Blip3oPipeline,
) -> None:
    settings: dict[str, Any] = {
        "num_inference_steps": np.int64(2),
        "guidance_scale": np.float32(1.5),
        "num_images_per_prompt": torch.tensor(1),
    }
    for prompts in (("a", "b"), np.array(["a", "b"]), (text for text in "ab")):
        generators = (torch.Generator().manual_seed(k) for k in range(2))
        output = tiny_pipe(prompts, generator=generators, **settings)  # type: ignore[arg-type]
        assert len(output.images) == 2
    assert isinstance(output, blip3o.ImageOutput)
    assert tiny_pipe.ask(Image.new("RGB", (8, 8)), "what?") is not None


def test_a_pipeline_shows_its_parts_and_where_it_is(tiny_pipe: Blip3oPipeline) -> None:
    shown = repr(tiny_pipe)
    for name, part in tiny_pipe.model.named_children():
        assert f"{name}: {type(part).__name__}, " in shown
    assert "M parameters" in shown
    assert "cpu, torch.float32" in shown


def test_the_types_of_the_interface_are_exported() -> None:
    for name in blip3o.__all__:
        assert getattr(blip3o, name) is not None
        assert name in dir(blip3o)
    assert blip3o.Message(role="user", text="hello").text == "hello"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = blip3o.nothing  # type: ignore[attr-defined]
