"""Images of prompts: batches, generators, guidance, callbacks, output types, errors."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.generate.draw import draw
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text import left_pad
from blip3o.models.generators.query_dit import QueryDiT, QueryPlan
from blip3o.models.prompts import Prompts
from blip3o.models.unified import SamplingConfig

PROMPTS = ["a red cat", "a dog and a very long list of other things", "x"]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def features(pipe: Blip3oPipeline, prompt: Any, **options: Any) -> Tensor:
    return pipe(prompt, output_type="features", **options).images


def assert_close(one: Tensor, other: Tensor) -> None:
    scale = float(other.abs().max())
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * scale)


def test_prompts_of_different_lengths_give_the_same_alone_and_together(
    tiny_pipe: Blip3oPipeline,
) -> None:
    together = features(tiny_pipe, PROMPTS, generator=seeded(1, 2, 3))
    assert together.shape == (3, 4, 8)
    for row, prompt in enumerate(PROMPTS):
        alone = features(tiny_pipe, prompt, generator=seeded(row + 1))
        assert_close(together[row : row + 1], alone)
    first, second = features(tiny_pipe, PROMPTS[:2], generator=seeded(1, 1))
    assert not torch.allclose(first, second)


def test_images_of_a_prompt_are_neighbors(tiny_pipe: Blip3oPipeline) -> None:
    four = features(tiny_pipe, PROMPTS[:2], num_images_per_prompt=2, generator=seeded(1, 2, 3, 4))
    listed = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert_close(four, features(tiny_pipe, listed, generator=seeded(1, 2, 3, 4)))
    assert not torch.allclose(four[0], four[1])


def test_one_generator_is_drawn_from_image_by_image(tiny_pipe: Blip3oPipeline) -> None:
    (g,) = seeded(7)
    together = tiny_pipe(PROMPTS, generator=g, output_type="pt").images
    (g,) = seeded(7)
    one_by_one = [tiny_pipe(p, generator=g, output_type="pt").images for p in PROMPTS]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=0, atol=1e-3)


def test_equal_seeds_give_equal_bits_and_other_seeds_other_images(
    tiny_pipe: Blip3oPipeline,
) -> None:
    first, again, other = (
        tiny_pipe("a cat", generator=seeded(s), output_type="pt").images for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_generator_draws_from_torch(tiny_pipe: Blip3oPipeline) -> None:
    torch.manual_seed(5)
    first = features(tiny_pipe, "a cat")
    second = features(tiny_pipe, "a cat")
    torch.manual_seed(5)
    assert torch.equal(features(tiny_pipe, "a cat"), first)
    assert not torch.equal(first, second)


def test_forms_of_the_output_agree(tiny_pipe: Blip3oPipeline) -> None:
    def run(form: Any) -> Any:
        return tiny_pipe(PROMPTS[:2], generator=seeded(1, 2), output_type=form).images

    tensors, arrays, images = run("pt"), run("np"), run("pil")
    assert tensors.shape == (2, 3, 16, 16)
    assert tensors.dtype == torch.float32
    assert 0 <= float(tensors.min()) < float(tensors.max()) <= 1
    assert isinstance(arrays, np.ndarray)
    np.testing.assert_array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert [type(image) for image in images] == [Image.Image] * 2
    assert images[0].size == (16, 16)
    levels = np.stack([np.asarray(image) for image in images]) / 255
    np.testing.assert_allclose(levels, arrays, atol=0.5 / 255 + 1e-6)


def test_guidance_is_two_passes_combined(tiny_pipe: Blip3oPipeline) -> None:
    """One Euler step from 1 to 0: noise - null - scale (conditional - null)."""
    model, scale = tiny_pipe.model, 4.0
    states = torch.randn(2, 4, 16, generator=seeded(0)[0])
    noise = torch.randn(2, 4, 8, generator=seeded(1)[0])
    sigma = torch.ones(2)
    with torch.no_grad():
        assert isinstance(model.generator, QueryDiT)
        plan, one = QueryPlan(model.generator, states), SamplingConfig(num_inference_steps=1)
        null = plan.null().velocity(noise, sigma)
        conditional = plan.velocity(noise, sigma)
        got, plain = draw(plan, noise, scale, one), draw(plan, noise, 1.0, one)
    assert not torch.allclose(null, conditional)
    assert_close(got, noise - null - scale * (conditional - null))
    assert_close(plain, noise - conditional)


def test_a_guidance_scale_of_one_computes_no_empty_condition(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    assert isinstance(tiny_pipe.model.generator, QueryDiT)
    plain = tiny_pipe.model.generator._layer

    def watch(block: Any, hidden: Tensor, *arguments: Any) -> Tensor:
        rows.append(len(hidden))
        return plain(block, hidden, *arguments)

    monkeypatch.setattr(tiny_pipe.model.generator, "_layer", watch)
    features(tiny_pipe, "a cat", guidance_scale=1.0)
    features(tiny_pipe, "a cat", guidance_scale=3.0)
    num_calls = 3 * tiny_pipe.model.generator.config.num_layers
    assert rows == [1] * num_calls + [2] * num_calls


def test_sampling_follows_the_velocity_without_any_cache(tiny_pipe: Blip3oPipeline) -> None:
    """The reference is a plain loop over the published levels with one full pass per step."""
    model = tiny_pipe.model
    row = tiny_pipe.chat_template.image_prompt(tiny_pipe.chat_template.generate_messages("a cat"))
    ids, mask = left_pad([row], tiny_pipe.tokenizer.pad_id)
    state = torch.randn(1, 4, 8, generator=seeded(3)[0])
    with torch.no_grad():
        plan = model.plan(Prompts(input_ids=ids, attention_mask=mask))
        for now, after in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
            sigma = torch.tensor([now])
            null = plan.null().velocity(state, sigma)
            velocity = null + 2.0 * (plan.velocity(state, sigma) - null)
            state = state + (after - now) * velocity
    assert_close(features(tiny_pipe, "a cat", generator=seeded(3)), state)


def test_the_model_defines_the_sampling_by_default(tiny_pipe: Blip3oPipeline) -> None:
    default = features(tiny_pipe, "a cat", generator=seeded(1))
    same = features(
        tiny_pipe, "a cat", generator=seeded(1), num_inference_steps=3, guidance_scale=2.0
    )
    other = features(tiny_pipe, "a cat", generator=seeded(1), num_inference_steps=5)
    assert torch.equal(default, same)
    assert not torch.equal(default, other)


def test_the_callback_sees_every_step(tiny_pipe: Blip3oPipeline) -> None:
    seen: list[tuple[Any, ...]] = []

    def callback(pipe: Any, step: int, num_steps: int, values: dict[str, Tensor]) -> None:
        seen.append((pipe, step, num_steps, values["features"].clone()))

    got = features(tiny_pipe, PROMPTS[:2], generator=seeded(1, 2), callback_on_step_end=callback)
    assert [(step, total) for _, step, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(pipe is tiny_pipe for pipe, *_ in seen)
    assert torch.equal(seen[-1][-1], got)


def test_the_callback_may_change_the_features(tiny_pipe: Blip3oPipeline) -> None:
    def replace(_: Any, step: int, __: int, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"features": torch.zeros_like(values["features"])} if step == 3 else {}

    got = features(tiny_pipe, "a cat", generator=seeded(1), callback_on_step_end=replace)
    assert torch.equal(got, torch.zeros_like(got))

    def shift(_: Any, step: int, __: int, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"features": values["features"] + float(step == 1)}

    plain = features(tiny_pipe, "a cat", generator=seeded(1))
    shifted = features(tiny_pipe, "a cat", generator=seeded(1), callback_on_step_end=shift)
    assert not torch.allclose(plain, shifted)


def test_a_callback_may_not_change_the_shape(tiny_pipe: Blip3oPipeline) -> None:
    with pytest.raises(UsageError, match=r"features of shape \[1\] instead of \[1, 4, 8\]"):
        tiny_pipe("a cat", callback_on_step_end=lambda *_: {"features": torch.zeros(1)})


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        (" \n", {}, "the prompt is empty"),
        (["a cat", ""], {}, "the prompt is empty"),
        ([], {}, "no prompt was given"),
        ("cat " * 200, {}, "the prompt has .* tokens; at most 92 fit this model"),
        ("a <image> of a cat", {}, "images are given separately"),
        ("a cat", {"generator": seeded(1, 2)}, "2 generators for 1 images"),
        ("a cat", {"generator": []}, "0 generators for 1 images"),
        (
            ["a", "b"],
            {"generator": seeded(1, 2), "num_images_per_prompt": 2},
            "2 generators for 4 images",
        ),
        ("a cat", {"num_inference_steps": 0}, "num_inference_steps must be 1 to 1000, got 0"),
        ("a cat", {"num_inference_steps": 1001}, "num_inference_steps must be 1 to 1000"),
        ("a cat", {"guidance_scale": 0.5}, "guidance_scale must be 1 to 100, got 0.5"),
        ("a cat", {"guidance_scale": float("nan")}, "guidance_scale must be 1 to 100, got nan"),
        ("a cat", {"num_images_per_prompt": 0}, "the number of images must be 1 to 1000, got 0"),
        ("a cat", {"output_type": "jpeg"}, "unknown output_type 'jpeg'; use pil, np, pt, features"),
        ("\udcff", {}, "not valid Unicode"),
    ],
)
def test_bad_requests_are_refused_before_any_work(
    tiny_pipe: Blip3oPipeline,
    monkeypatch: pytest.MonkeyPatch,
    prompt: Any,
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(tiny_pipe.model, "plan", None)
    with pytest.raises(UsageError, match=message):
        tiny_pipe(prompt, **options)


def test_special_tokens_in_a_prompt_are_plain_text(tiny_pipe: Blip3oPipeline) -> None:
    """Special tokens in a caption neither end its turn nor add an image."""
    got = features(tiny_pipe, "<|image_pad|><|im_end|>[IMG]", generator=seeded(1))
    assert bool(got.isfinite().all())


def test_a_model_in_bf16_draws_too(tiny_folder: Any) -> None:
    pipe = Blip3oPipeline.from_pretrained(tiny_folder, device="cpu", dtype="bf16")
    assert pipe.dtype == torch.bfloat16
    exact = Blip3oPipeline.from_pretrained(tiny_folder, device="cpu", dtype="fp32")
    # One step, because a random network would amplify rounding errors over many steps.
    one, other = (
        features(p, PROMPTS, generator=seeded(1, 2, 3), num_inference_steps=1).float()
        for p in (pipe, exact)
    )
    assert float((one - other).norm() / other.norm()) < 0.1
    assert len(pipe(PROMPTS, generator=seeded(1, 2, 3)).images) == 3
