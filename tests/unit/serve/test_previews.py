"""Previews: their content, their receivers, and that they do not change the final image."""

import pytest
import torch
from PIL import Image

from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.images import ImageMaker
from blip3o.serve.jobs import Event, ImageRequest, Job, Preview, Row
from blip3o.serve.previews import Previewer

STEPS = 5


def watched(every: int, steps: int = STEPS, seed: int = 0) -> tuple[list[Event], list[Row]]:
    request = ImageRequest(
        kind="generate",
        prompt=[1, 2, 3],
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=2.0,
        preview_every=every,
    )
    events: list[Event] = []
    return events, [Row(Job(request, events.append), request, 0)]


def test_previews_come_at_the_requested_interval_and_at_the_end(tiny_pipe: Blip3oPipeline) -> None:
    maker = ImageMaker(tiny_pipe, 4)
    (often, first), (seldom, second), (never, third) = watched(1), watched(2), watched(0)
    made = maker.make([*first, *second, *third])
    for events, expected in ((often, [1, 2, 3, 4, 5]), (seldom, [2, 4, 5]), (never, [])):
        previews = [event for event in events if isinstance(event, Preview)]
        assert [one.step for one in previews] == expected
        assert [one.seconds for one in previews] == sorted(one.seconds for one in previews)
    plain = maker.make(watched(0)[1])
    assert [image.tobytes() for image in made] == [plain[0].tobytes()] * 3


def test_the_last_preview_is_the_image(tiny_pipe: Blip3oPipeline) -> None:
    maker = ImageMaker(tiny_pipe, 1, preview_steps=1000)
    events, rows = watched(STEPS)
    (image,) = maker.make(rows)
    (preview,) = events
    assert isinstance(preview, Preview)
    assert preview.image.tobytes() == image.tobytes()
    assert list(preview.features.shape) == list(tiny_pipe.model.config.feature_shape)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_straight_path_shows_its_end_at_once(step: int) -> None:
    sigmas = torch.tensor([1.0, 0.7, 0.2, 0.0])
    noise, clean = torch.randn(2, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    events, rows = watched(1, steps=3)
    watch = Previewer(rows)
    watch.start(noise, torch.zeros(1, 1), sigmas)
    seen: list[torch.Tensor] = []

    def decode(features: torch.Tensor, decoder_noise: torch.Tensor) -> list[Image.Image]:
        del decoder_noise
        seen.append(features)
        return [Image.new("RGB", (1, 1))]

    for number in range(1, step + 1):
        watch(number, clean + sigmas[number] * (noise - clean), decode)
    torch.testing.assert_close(seen[-1], clean)
    assert len(events) == step


def test_no_preview_is_decoded_for_a_cancelled_job() -> None:
    events, rows = watched(1)
    watch = Previewer(rows)
    watch.start(torch.zeros(1, 4, 3), torch.zeros(1, 1), torch.linspace(1, 0, STEPS + 1))
    rows[0].job.cancel()
    watch(1, torch.zeros(1, 4, 3), lambda *_: pytest.fail("decoded for nobody"))
    assert events == []
