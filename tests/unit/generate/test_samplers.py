"""The fast samplers draw what the plain one draws."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.core.config import evolve
from blip3o.flow.solver import SOLVERS
from blip3o.generate.compiled import CompiledSampler
from blip3o.generate.images import sample_features, sample_features_plain
from blip3o.generate.offload import Offloading
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.unified import UnifiedModel

NUM_PROMPTS, NUM_IMAGES = 2, 3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arguments(model: UnifiedModel, *, edits: bool, seed: int = 0) -> dict[str, Any]:
    tokens, channels = model.config.feature_shape
    place = model.query_tokens.weight
    queries, width = place.shape[-2:]
    return {
        "condition": draw(NUM_PROMPTS, queries, width, seed=seed).to(place),
        "noise": draw(NUM_PROMPTS * NUM_IMAGES, tokens, channels, seed=seed + 1).to(place),
        "reference": draw(NUM_PROMPTS, tokens, channels, seed=seed + 2).to(place)
        if edits
        else None,
        "num_inference_steps": 4,
    }


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
    inputs = arguments(tiny_pipe.model, edits=edits) | {"guidance_scale": guidance_scale}
    expected = sample_features_plain(tiny_pipe.model, **inputs)
    assert_same(sample_features(tiny_pipe.model, **inputs), expected, 1e-5)


def test_a_model_follows_its_own_solver(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = arguments(tiny_pipe.model, edits=False) | {"guidance_scale": 3.0}
    drawn: dict[str, Tensor] = {}
    for name in SOLVERS:
        use_solver(tiny_pipe.model, name, monkeypatch)
        drawn[name] = sample_features(tiny_pipe.model, **inputs)
    assert not torch.allclose(drawn["euler"], drawn["heun"], atol=1e-3)


def test_images_must_be_shared_out_evenly(tiny_pipe: Blip3oPipeline) -> None:
    inputs = arguments(tiny_pipe.model, edits=False) | {"guidance_scale": 1.0}
    inputs["noise"] = inputs["noise"][1:]
    with pytest.raises(ValueError, match="5 images cannot be shared out among 2 prompts"):
        sample_features(tiny_pipe.model, **inputs)


def test_a_sampler_hears_of_a_callback_only_if_there_is_one(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CUDA graph is not used where somebody wants to see the steps.
    heard: list[Any] = []

    def sample(*inputs: Any, callback: Any, **options: Any) -> Tensor:
        heard.append(callback)
        return sample_features(*inputs, callback=callback, **options)

    monkeypatch.setattr(tiny_pipe, "_sample", sample)
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

    expected, plain_layer = run(), tiny_pipe.model.dit.sample_layer
    plain_sample = tiny_pipe._sample
    try:
        tiny_pipe.compile()
        assert tiny_pipe.model.dit.sample_layer is not plain_layer
        assert_same(run(), expected, 1e-4)
    finally:  # the pipeline is shared by all tests
        tiny_pipe._sample, tiny_pipe.model.dit.sample_layer = plain_sample, plain_layer


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
    sampler = CompiledSampler(cuda_model)
    for seed in (0, 10, 20):
        inputs = arguments(cuda_model, edits=edits, seed=seed) | {"guidance_scale": 3.0}
        expected = sample_features_plain(cuda_model, **inputs)
        assert_same(sampler(cuda_model, **inputs), expected, 1e-4)
    assert len(sampler._graphs) == 1


@pytest.mark.gpu
def test_a_graph_follows_changed_and_replaced_weights(cuda_model: UnifiedModel) -> None:
    sampler = CompiledSampler(cuda_model)
    inputs = arguments(cuda_model, edits=False) | {"guidance_scale": 3.0}
    sampler(cuda_model, **inputs)
    weight = cuda_model.dit.patch_embedder.proj.weight
    with torch.no_grad():
        weight.mul_(0.5)
    changed = sampler(cuda_model, **inputs)
    assert_same(changed, sample_features_plain(cuda_model, **inputs), 1e-4)
    weight.data = weight.data * 2
    replaced = sampler(cuda_model, **inputs)
    assert_same(replaced, sample_features_plain(cuda_model, **inputs), 1e-4)
    assert len(sampler._graphs) == 2


@pytest.mark.gpu
def test_a_graph_is_not_made_of_weights_that_come_and_go(cuda_model: UnifiedModel) -> None:
    inputs = arguments(cuda_model, edits=False) | {"guidance_scale": 3.0}
    expected = sample_features_plain(cuda_model, **inputs)
    offloading = Offloading(cuda_model, torch.device("cuda"), by_block=False)
    sampler = CompiledSampler(cuda_model)
    for _ in range(2):
        cuda_model.backbone.logits(inputs["condition"])  # whose weights take the DiT's place
        assert_same(sampler(cuda_model, **inputs), expected, 1e-4)
    assert not sampler._graphs
    offloading.remove()


@pytest.mark.gpu
def test_a_callback_is_called_in_spite_of_graphs(cuda_model: UnifiedModel) -> None:
    steps: list[int] = []
    inputs = arguments(cuda_model, edits=False) | {"guidance_scale": 3.0}
    CompiledSampler(cuda_model)(cuda_model, **inputs, callback=lambda step, _: steps.append(step))
    assert steps == [1, 2, 3, 4]
