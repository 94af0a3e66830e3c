"""The bits of an image depend only on its request, and not on the rest of its batch."""

import pytest
import torch
from PIL import Image

from blip3o.core.rng import image_generator
from blip3o.generate.exact import equal_batch_sizes, fingerprint, fingerprints
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.recipes import pocket_parts
from blip3o.serve.images import ImageMaker
from blip3o.serve.jobs import ImageRequest, Job, Preview, Row

MAX_BATCH = 6
STEPS = 2
PROMPTS = ("a red cat", "a dog", "draw: what is this? a very long caption of a red cat", "x")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def pipe(request: pytest.FixtureRequest) -> Blip3oPipeline:
    """The bundled model, whose shapes use the kernels of real work."""
    return Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype=request.param)


@pytest.fixture(scope="module")
def maker(pipe: Blip3oPipeline) -> ImageMaker:
    return ImageMaker(pipe, MAX_BATCH)


def rows_of(request: ImageRequest) -> list[Row]:
    job = Job(request, lambda event: None)
    return [Row(job, request, index) for index in range(request.count)]


def generation(pipe: Blip3oPipeline, text: str, seed: int, scale: float) -> ImageRequest:
    chat = pipe.chat_template
    return ImageRequest(
        kind="generate",
        prompt=chat.image_prompt(chat.generate_messages(text)),
        seed=seed,
        num_inference_steps=STEPS,
        guidance_scale=scale,
    )


def edit(pipe: Blip3oPipeline, text: str, color: str) -> ImageRequest:
    chat = pipe.chat_template
    return ImageRequest(
        kind="edit",
        prompt=chat.image_prompt(chat.edit_messages(text)),
        images=[Image.new("RGB", (40, 30), color)],
        num_inference_steps=STEPS,
        guidance_scale=2.0,
    )


def data(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("scales", [(1.5, 3.0, 7.0, 2.0), (1.0, 1.0, 1.0, 1.0)])
def test_an_image_is_the_same_alone_and_in_any_batch(
    pipe: Blip3oPipeline, maker: ImageMaker, scales: tuple[float, ...]
) -> None:
    requests = [
        generation(pipe, text, seed, scale)
        for seed, (text, scale) in enumerate(zip(PROMPTS, scales, strict=True))
    ]
    alone = [data(maker.make(rows_of(request)))[0] for request in requests]
    assert len(set(alone)) == len(alone)
    for order in ([0, 1], [1, 0, 2], [3, 2, 1, 0], [2, 2, 0, 3, 1, 2]):
        rows = [rows_of(requests[number])[0] for number in order]
        assert data(maker.make(rows)) == [alone[number] for number in order]


def test_features_are_the_same_bit_for_bit(pipe: Blip3oPipeline, maker: ImageMaker) -> None:
    """The 8 bits of a pixel could hide a difference; the floats of the sampler cannot."""
    for probe, sizes in (
        (maker._sampling_probe, maker.sampling_sizes),
        (maker._decoding_probe, maker.decoding_sizes),
    ):
        full = probe(range(MAX_BATCH))
        for size in sizes:
            assert torch.equal(probe(range(size)), full[:size])
        assert torch.equal(probe([3, 1, 0, 5, 2, 4]), full[[3, 1, 0, 5, 2, 4]])
        assert torch.equal(probe([2] * MAX_BATCH), full[[2] * MAX_BATCH])


@pytest.mark.parametrize(("steps", "scale"), [(2, 2.0), (3, 2.0), (8, 1.0)])
def test_the_sizes_hold_for_any_number_of_steps(
    pipe: Blip3oPipeline, maker: ImageMaker, steps: int, scale: float
) -> None:
    """The probe takes one step, so it misses products whose rows are noise levels.

    Guidance doubles the rows of a step and leaves the noise levels alone, so pairs are enough.
    """
    request = generation(pipe, PROMPTS[0], 0, scale)
    plan = maker._plan(request).repeat(MAX_BATCH)
    tensors = plan.tensors()
    plan = plan.with_tensors(
        [
            one + torch.randn(one.shape).to(one) if one.is_floating_point() else one
            for one in tensors
        ]
    )
    noise = torch.randn(MAX_BATCH, *pipe.model.config.feature_shape).to(pipe.dtype)

    def run(size: int) -> torch.Tensor:
        return pipe.draw(
            plan.select(torch.arange(size)),
            noise[:size],
            1.0 if scale == 1.0 else torch.full((size,), scale),
            num_inference_steps=steps,
        )

    full = run(MAX_BATCH)
    for size in maker.sampling_sizes:
        assert torch.equal(run(size), full[:size])


def test_prompts_of_other_lengths_do_not_change_a_bit(pipe: Blip3oPipeline) -> None:
    """A regression test: the keys of a short prompt were padded to those of its batch."""
    torch.manual_seed(0)
    model = pocket_parts.model().build().to(pipe.dtype).eval()  # draws from the prompt's tokens
    torch.nn.init.normal_(model.get_parameter("generator.patch_out.weight"), std=0.05)
    own = Blip3oPipeline(model, pipe.tokenizer)
    maker = ImageMaker(own, MAX_BATCH)
    requests = [
        generation(own, text, seed, 2.0).previewed(STEPS)
        for seed, text in enumerate([*PROMPTS, "a red cat " * 40])
    ]

    def features(chosen: list[ImageRequest]) -> list[torch.Tensor]:
        seen: list[list[object]] = [[] for _ in chosen]
        jobs = [Job(one, events.append) for one, events in zip(chosen, seen, strict=True)]
        maker.make([Row(job, one, 0) for job, one in zip(jobs, chosen, strict=True)])
        return [one.features for (one,) in seen if isinstance(one, Preview)]

    alone = [features([request])[0] for request in requests]
    together = features(requests)
    assert len(together) == len(requests)
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_edits_and_reconstructions_are_the_same_in_any_batch(
    pipe: Blip3oPipeline, maker: ImageMaker
) -> None:
    edits = [edit(pipe, "make it blue", "red"), edit(pipe, "a much longer instruction", "green")]
    kept = [
        ImageRequest(kind="reconstruct", images=[Image.new("RGB", (9, 9), color)], count=2)
        for color in ("red", "navy")
    ]
    for group in (edits, kept):
        rows = [row for request in group for row in rows_of(request)]
        alone = [data(maker.make([row]))[0] for row in rows]
        assert len(set(alone)) == len(alone)
        assert data(maker.make(rows[::-1])) == alone[::-1]


def test_images_are_those_of_the_pipeline(pipe: Blip3oPipeline, maker: ImageMaker) -> None:
    request = generation(pipe, PROMPTS[0], 5, 3.0)
    (own,) = pipe(
        PROMPTS[0],
        generator=image_generator(5, 0, 0),
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    (served,) = maker.make(rows_of(request))
    values = torch.tensor(list(served.tobytes())).reshape(96, 96, 3).permute(2, 0, 1) / 255
    # In half precision, batches of other sizes round differently.
    assert (values - own).abs().mean() < (1e-3 if pipe.dtype == torch.float32 else 1e-2)


def test_an_edit_sees_all_its_images(pipe: Blip3oPipeline, maker: ImageMaker) -> None:
    chat = pipe.chat_template
    (turn,) = chat.edit_messages("make it blue")
    made = []
    for second in ("red", "white"):
        both = [Image.new("RGB", (20, 20), color) for color in ("red", second)]
        message = type(turn)(role="user", text="<image>\n" + turn.text)
        request = ImageRequest(
            kind="edit",
            prompt=chat.image_prompt([message]),
            images=both,
            num_inference_steps=STEPS,
            guidance_scale=2.0,
        )
        made += data(maker.make(rows_of(request)))
    assert made[0] != made[1]


def test_a_difference_inside_a_network_shows_in_its_fingerprints() -> None:
    """The output may hide the difference, as the ReLU does here."""
    weights = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    network = torch.nn.Sequential(weights[0], torch.nn.ReLU(), weights[1])
    torch.nn.init.constant_(weights[0].bias, -1e3)
    batch = torch.rand(3, 5, 8)
    other = batch.clone()
    other[1, 4, 7] += 1
    results, firsts = [], []
    for inputs in (batch, torch.cat([batch, batch]), other):
        with torch.no_grad(), fingerprints(network, 3) as seen:
            results.append(network(inputs)[:3])
        assert [len(one) for one in seen] == [3, 3]
        firsts.append(seen[0][:, 0])
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(firsts[1], firsts[0])
    assert (firsts[2] == firsts[0]).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fingerprint_sees_the_last_bit_of_a_value_at_its_place(dtype: torch.dtype) -> None:
    values = torch.rand(2, 3, 4).to(dtype)
    bits = values.clone().view(torch.int32 if dtype == torch.float32 else torch.int16)
    bits[1, 2, 3] ^= 1
    changed = bits.view(dtype)
    turned = values.clone()
    turned[0, 0, :2] = values[0, 0, :2].flip(0)
    known = fingerprint(values, 2)
    assert (fingerprint(changed, 2) == known).flatten().tolist() == [True, False]
    assert (fingerprint(turned, 2) == known).flatten().tolist() == [False, True]


def test_sizes_are_those_that_agree_with_the_largest() -> None:
    def rounding(samples: range) -> torch.Tensor:
        return torch.tensor([float(s) + (0.5 if len(samples) < 4 else 0.0) for s in samples])

    def by_place(samples: range) -> torch.Tensor:
        return torch.tensor([float(s) + place for place, s in enumerate(samples)])

    assert equal_batch_sizes(rounding, 8) == [4, 5, 6, 7, 8]  # type: ignore[arg-type]
    assert equal_batch_sizes(rounding, 3) == [1, 2, 3]  # type: ignore[arg-type]
    assert equal_batch_sizes(by_place, 8) == [1]  # type: ignore[arg-type]
    assert equal_batch_sizes(by_place, 1) == [1]  # type: ignore[arg-type]
