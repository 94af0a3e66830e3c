"""NextDiT against recorded outputs of the released system (family `dit`)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.flow.guidance import combine
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import at_levels, euler
from blip3o.models.dit.nextdit import NextDiT, NextDiTConfig
from blip3o.models.dit.nextdit_sampling import PreparedNextDiT
from blip3o.weights.keymaps.blip3o_qwen import NAMES

OUTPUT_TOLERANCE = 2e-5
SAMPLE_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-4  # relative to the largest value of a gradient

Load = Callable[[Any], NextDiT]

each_case = pytest.mark.parity_cases("dit/*_weights.safetensors")


def with_null(condition: Tensor) -> Tensor:
    """Returns the batch [null, condition], [2 B, ...]."""
    return torch.cat([torch.zeros_like(condition), condition])


@pytest.fixture
def load(dit_config: Callable[[dict[str, Any]], NextDiTConfig]) -> Callable[[Any], NextDiT]:
    """Returns a function that builds the network of a case with its recorded weights."""

    def loaded(case: Any) -> NextDiT:
        dit = dit_config(case.settings()["config"]).build()
        own = {NAMES.ours(f"model.dit.{name}"): value for name, value in case.tensors().items()}
        weights = {
            k.removeprefix("generator.dit."): value for k, value in own.items() if k is not None
        }
        dit.load_state_dict(weights, strict=True)
        return dit.eval()

    return loaded


def to_tokens(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@each_case
def test_forward_equals_recorded_outputs(case: Any, load: Load) -> None:
    dit, recorded = load(case), case.tensors("forward")
    timesteps = [name for name in recorded if name.startswith("timestep_")]
    assert timesteps
    for name in timesteps:
        with torch.no_grad():
            output = dit(recorded["x"], recorded[name], recorded["z_latents"])
        assert_near(output, recorded[name.replace("timestep", "output")], OUTPUT_TOLERANCE)


@each_case
def test_zero_condition_equals_recorded_output(case: Any, load: Load) -> None:
    dit, recorded = load(case), case.tensors("forward")
    empty = torch.zeros_like(recorded["z_latents"])
    with torch.no_grad():
        output = dit(recorded["x"], recorded["timestep_0"], empty)
    assert_near(output, recorded["output_zero_z_timestep_0"], OUTPUT_TOLERANCE)


@each_case
def test_gradients_equal_recorded_gradients(case: Any, load: Load) -> None:
    dit, recorded = load(case), case.tensors("forward")
    inputs = {name: recorded[name].requires_grad_() for name in ("x", "z_latents")}
    output = dit(inputs["x"], recorded["timestep_1"], inputs["z_latents"])
    loss = (output - recorded["grad_target"]).square().mean()
    assert_near(loss, recorded["grad_loss"], OUTPUT_TOLERANCE)
    loss.backward()
    leaves = {f"model.{name}": parameter for name, parameter in dit.named_parameters()} | inputs
    names = [name for name in recorded if name.startswith("grad.")]
    assert names
    for name in names:
        gradient = leaves[name.removeprefix("grad.")].grad
        assert gradient is not None, name
        expected = recorded[name]
        assert_near(gradient, expected, GRADIENT_TOLERANCE * float(expected.abs().max()))


@each_case
def test_guided_sampling_equals_recorded_latents(case: Any, load: Load) -> None:
    dit, recorded, settings = load(case), case.tensors("sample"), case.settings()["sample"]
    sigmas = inference_sigmas(settings["num_inference_steps"], settings["scheduler"]["shift"])
    assert_near(sigmas, torch.tensor(settings["sigmas_with_final_zero"]), 1e-7)
    num_images = len(recorded["initial_latents"]) // len(recorded["img_hidden_states"])
    condition = with_null(recorded["img_hidden_states"].repeat_interleave(num_images, dim=0))
    context = dit.prepare_context(condition)
    grid = tuple(recorded["initial_latents"].shape[-2:])
    velocities: list[Tensor] = []

    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
        return dit.velocity(noisy, sigma, condition, context, grid=grid, truncate_timestep=True)

    states: dict[str, Tensor] = {}

    def keep(step: int, noisy: Tensor) -> None:
        states[f"latents_after_step_{step:02d}"] = noisy

    def recording(noisy: Tensor, sigma: Tensor) -> Tensor:
        both = velocity(torch.cat([noisy, noisy]), torch.cat([sigma, sigma]))
        velocities.append(combine(both, settings["guidance_scale"]))
        return velocities[-1]

    with torch.no_grad():
        final = euler(
            at_levels(recording, sigmas), to_tokens(recorded["initial_latents"]), sigmas, keep
        )
    for name in [name for name in recorded if name.startswith("guided_velocity_step_")]:
        step = int(name.rpartition("_")[2])
        assert_near(velocities[step - 1], to_tokens(recorded[name]), SAMPLE_TOLERANCE)
    compared = [name for name in recorded if name.startswith("latents_after_step_")]
    assert compared
    for name in compared:
        assert_near(states[name], to_tokens(recorded[name]), SAMPLE_TOLERANCE)
    assert_near(final, to_tokens(recorded["final_latents"]), SAMPLE_TOLERANCE)


@each_case
def test_prepared_sampling_equals_recorded_latents(case: Any, load: Load) -> None:
    """In the fast path, all images of a condition share its keys and values."""
    dit, recorded, settings = load(case), case.tensors("sample"), case.settings()["sample"]
    sigmas = inference_sigmas(settings["num_inference_steps"], settings["scheduler"]["shift"])
    condition, noise = recorded["img_hidden_states"], recorded["initial_latents"]
    with torch.no_grad():
        prepared = PreparedNextDiT(
            dit,
            condition,
            sigmas[:-1],
            num_images=len(noise) // len(condition),
            is_guided=True,
            grid=tuple(noise.shape[-2:]),
            truncate_timestep=True,
        )
        final = euler(
            lambda noisy, step: combine(prepared.velocity(noisy, step), settings["guidance_scale"]),
            to_tokens(noise),
            sigmas,
        )
    assert_near(final, to_tokens(recorded["final_latents"]), SAMPLE_TOLERANCE)


@each_case
def test_truncated_timesteps_equal_recorded_integers(case: Any, load: Load) -> None:
    settings = case.settings()["sample"]
    dit = load(case)
    timesteps: list[int] = []
    dit.time_caption_embed.timestep_embedder.register_forward_pre_hook(
        lambda _, inputs: timesteps.append(int(inputs[0][0]))
    )
    config = dit.config
    sigmas = inference_sigmas(settings["num_inference_steps"], settings["scheduler"]["shift"])
    condition = torch.zeros(1, 1, config.condition_size)

    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
        return dit.velocity(noisy, sigma, condition, truncate_timestep=True)

    noise = torch.zeros(1, config.grid**2, config.in_channels)
    euler(at_levels(velocity, sigmas), noise, sigmas)
    assert timesteps == settings["dit_timestep_integer_seen_by_model"]


@pytest.mark.parity_cases("manifests/nextdit_main_*.json")
def test_published_names_shapes_and_count(
    case: Any,
    dit_config: Callable[[dict[str, Any]], NextDiTConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = case.settings()
    own = {NAMES.ours(f"model.dit.{name}"): shape for name, shape in manifest["weights"].items()}
    with torch.device("meta"):
        recorded = dit_config(manifest["config"])
        dit = recorded.build()
    state = dit.state_dict()
    assert {f"generator.dit.{name}": list(value.shape) for name, value in state.items()} == own
    assert len(own) == manifest["n_tensors"]
    count = sum(value.numel() for value in state.values())
    assert count == manifest["n_params"]
    with capsys.disabled():
        print(f"\n{case.path.stem}: {count:,} parameters")  # noqa: T201
    published = NextDiTConfig.published(recorded.condition_size)
    with torch.device("meta"):
        again = published.build().state_dict()
    assert {name: v.shape for name, v in again.items()} == {n: v.shape for n, v in state.items()}
