"""The fast samplers give the same features as the plain sampler."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.core.config import evolve
from blip3o.flow.guidance import combine
from blip3o.flow.solver import SOLVERS
from blip3o.generate.compiled import CompiledDraw
from blip3o.generate.draw import draw, noise_levels
from blip3o.generate.offload import Offloading
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.generators.plan import Plan, join_plans
from blip3o.models.generators.query_dit import QueryDiT, QueryPlan
from blip3o.models.unified import SamplingConfig, UnifiedModel

NUM_PROMPTS, NUM_IMAGES = 2, 3


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclasses.dataclass
class Drawing:
    """The arguments of a sampler."""

    plan: QueryPlan
    noise: Tensor
    scale: float | Tensor
    sampling: SamplingConfig

    def by(self, sampler: Any) -> Tensor:
        return sampler(self.plan, self.noise, self.scale, self.sampling)

    @torch.no_grad()
    def plain(self) -> Tensor:
        """Returns the features that the plain path gives, with one full pass per step."""
        plan = self.plan.repeat(NUM_IMAGES)
        both, sigmas = join_plans([plan.null(), plan]), noise_levels(self.sampling)
        is_guided = isinstance(self.scale, Tensor) or self.scale != 1.0

        def velocity(noisy: Tensor, step: int) -> Tensor:
            used = both if is_guided else plan
            noisy = torch.cat([noisy, noisy]) if is_guided else noisy
            sigma = sigmas[step].to(noisy.device).expand(len(noisy))
            out = plan.generator.dit.velocity(noisy, sigma, used.states, None, used.reference)
            return combine(out, self.scale) if is_guided else out

        return SOLVERS[self.sampling.solver](velocity, self.noise, sigmas, None)


def drawing(
    model: UnifiedModel, scale: float | Tensor = 3.0, *, edits: bool = False, seed: int = 0
) -> Drawing:
    tokens, channels = model.config.feature_shape
    place = model.get_parameter("generator.query_tokens.weight")
    queries, width = place.shape[-2:]
    states = random(NUM_PROMPTS, queries, width, seed=seed).to(place)
    reference = random(NUM_PROMPTS, tokens, channels, seed=seed + 2).to(place) if edits else None
    noise = random(NUM_PROMPTS * NUM_IMAGES, tokens, channels, seed=seed + 1).to(place)
    sampling = dataclasses.replace(model.config.sampling, num_inference_steps=4)
    assert isinstance(model.generator, QueryDiT)
    return Drawing(QueryPlan(model.generator, states, reference=reference), noise, scale, sampling)


def assert_same(got: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * scale)


def use_solver(model: UnifiedModel, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "config", evolve(model.config, {"sampling.solver": name}))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("edits", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_fast_sampling_equals_plain_sampling(
    tiny_pipe: Blip3oPipeline,
    guidance_scale: float,
    edits: bool,
    solver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_solver(tiny_pipe.model, solver, monkeypatch)
    given = drawing(tiny_pipe.model, guidance_scale, edits=edits)
    assert_same(given.by(draw), given.plain(), 1e-5)


def test_every_image_may_have_its_own_guidance(tiny_pipe: Blip3oPipeline) -> None:
    given = drawing(tiny_pipe.model, torch.arange(1.0, 1 + NUM_PROMPTS * NUM_IMAGES))
    assert_same(given.by(draw), given.plain(), 1e-5)


def test_a_plan_without_a_fast_path_draws_the_same(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = drawing(tiny_pipe.model, edits=True)
    expected = given.by(draw)
    monkeypatch.setattr(QueryPlan, "sampling", Plan.sampling)
    assert_same(given.by(draw), expected, 1e-5)


def test_a_model_follows_its_own_solver(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Tensor] = {}
    for name in SOLVERS:
        use_solver(tiny_pipe.model, name, monkeypatch)
        drawn[name] = drawing(tiny_pipe.model).by(draw)
    assert not torch.allclose(drawn["euler"], drawn["heun"], atol=1e-3)


def test_every_prompt_must_have_equally_many_images(tiny_pipe: Blip3oPipeline) -> None:
    given = drawing(tiny_pipe.model, 1.0)
    given.noise = given.noise[1:]
    with pytest.raises(ValueError, match="5 images cannot be divided among 2 prompts"):
        given.by(draw)


def test_a_sampler_gets_a_callback_only_if_there_is_one(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CUDA graph is not used if there is a callback.
    heard: list[Any] = []

    def watched(*inputs: Any) -> Tensor:
        heard.append(inputs[-1])
        return draw(*inputs)

    monkeypatch.setattr(tiny_pipe, "_draw", watched)
    tiny_pipe("a cat", output_type="features")
    tiny_pipe("a cat", output_type="features", callback_on_step_end=lambda *_: {})
    assert heard[0] is None
    assert heard[1] is not None


@pytest.mark.compile
def test_a_compiled_pipeline_draws_the_same(tiny_pipe: Blip3oPipeline) -> None:
    def run() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return tiny_pipe(
            ["a cat", "a dog"],
            num_images_per_prompt=2,
            generator=generator,
            output_type="features",
        ).images

    expected, generator = run(), tiny_pipe.model.generator
    plain_draw, plain_layer = tiny_pipe._draw, generator._layer
    try:
        tiny_pipe.compile()
        assert generator._layer is not plain_layer
        assert_same(run(), expected, 1e-4)
    finally:  # the pipeline is shared by all tests
        tiny_pipe._draw, generator._layer = plain_draw, plain_layer


@pytest.fixture
def cuda_model(tiny_pipe: Blip3oPipeline) -> Iterator[UnifiedModel]:
    """The tiny model in fp32 on a GPU, with exact products."""
    if not torch.cuda.is_available():
        pytest.skip("CUDA graphs need a CUDA device")
    model = tiny_pipe.model.config.build().eval()
    model.load_state_dict(tiny_pipe.model.state_dict())
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield model.to("cuda")
    torch.backends.cuda.matmul.allow_tf32 = allowed


@pytest.mark.gpu
@pytest.mark.parametrize("edits", [False, True])
def test_a_graph_draws_the_same_for_every_input_of_its_shape(
    cuda_model: UnifiedModel, edits: bool
) -> None:
    sampler = CompiledDraw(cuda_model.generator)
    for seed in (0, 10, 20):
        given = drawing(cuda_model, edits=edits, seed=seed)
        assert_same(given.by(sampler), given.plain(), 1e-4)
    assert len(sampler._graphs) == 1


@pytest.mark.gpu
def test_a_graph_takes_a_guidance_scale_of_each_image(cuda_model: UnifiedModel) -> None:
    sampler = CompiledDraw(cuda_model.generator)
    for first in (1.0, 2.0):
        scales = torch.arange(first, first + NUM_PROMPTS * NUM_IMAGES, device="cuda")
        given = drawing(cuda_model, scales)
        assert_same(given.by(sampler), given.plain(), 1e-4)
    assert len(sampler._graphs) == 1


@pytest.mark.gpu
def test_a_graph_follows_changed_and_replaced_weights(cuda_model: UnifiedModel) -> None:
    sampler = CompiledDraw(cuda_model.generator)
    given = drawing(cuda_model)
    given.by(sampler)
    weight = cuda_model.get_parameter("generator.dit.patch_embedder.proj.weight")
    with torch.no_grad():
        weight.mul_(0.5)
    changed = given.by(sampler)
    assert_same(changed, given.plain(), 1e-4)
    weight.data = weight.data * 2
    replaced = given.by(sampler)
    assert_same(replaced, given.plain(), 1e-4)
    assert len(sampler._graphs) == 2


@pytest.mark.gpu
def test_a_graph_is_not_captured_while_weights_are_offloaded(cuda_model: UnifiedModel) -> None:
    given = drawing(cuda_model)
    expected = given.plain()
    offloading = Offloading(cuda_model, torch.device("cuda"), by_block=False)
    sampler = CompiledDraw(cuda_model.generator)
    for _ in range(2):
        cuda_model.backbone.logits(given.plan.states)  # whose weights replace the generator's
        assert_same(given.by(sampler), expected, 1e-4)
    assert not sampler._graphs
    offloading.remove()


@pytest.mark.gpu
def test_a_callback_is_called_in_spite_of_graphs(cuda_model: UnifiedModel) -> None:
    steps: list[int] = []
    given = drawing(cuda_model)
    CompiledDraw(cuda_model.generator)(
        given.plan, given.noise, 3.0, given.sampling, lambda step, _: steps.append(step)
    )
    assert steps == [1, 2, 3, 4]
