"""Randomness as a function of its purpose: reproducible, independent of batch and order."""

import itertools

import numpy as np
import pytest
import torch

from blip3o.core.rng import generator, numpy_rng, sample_normal, sample_uniform

EPOCHS = torch.tensor([0, 0, 1, 2])
INDICES = torch.tensor([5, 6, 5, 2**40])


def test_a_sample_draws_the_same_in_any_batch_and_order() -> None:
    batch = sample_normal((3, 2), 7, "noise", EPOCHS, INDICES)
    assert batch.shape == (4, 3, 2)
    assert batch.dtype == torch.float32
    order = torch.tensor([2, 0, 3, 1])
    shuffled = sample_normal((3, 2), 7, "noise", EPOCHS[order], INDICES[order])
    assert torch.equal(shuffled, batch[order])
    for row in range(4):
        one = slice(row, row + 1)
        assert torch.equal(
            sample_normal((3, 2), 7, "noise", EPOCHS[one], INDICES[one])[0], batch[row]
        )
    uniform = sample_uniform(7, "sigma", EPOCHS, INDICES)
    assert torch.equal(sample_uniform(7, "sigma", EPOCHS[order], INDICES[order]), uniform[order])


def test_numbers_do_not_change_between_versions() -> None:
    """Recorded numbers: if they change, no old run can be resumed or repeated."""
    normal = numpy_rng(0, "noise", 1, 2).standard_normal(3, dtype=np.float32)
    np.testing.assert_allclose(normal, [-1.2095474, 0.4454657, -1.0361540], rtol=1e-6)
    assert numpy_rng(0, "picture").integers(0, 2**62) == 2946273297355896709


def test_every_key_gives_its_own_stream() -> None:
    keys = itertools.product((0, 1), ("noise", "sigma", "noise/1"), (0, 1, 2), (0, 1, 2))
    heads = [
        tuple(numpy_rng(seed, stream, epoch, index).integers(0, 2**62, 4))
        for seed, stream, epoch, index in keys
    ]
    assert len(set(heads)) == len(heads)
    # Seed and stream are joined with a separator: (1, "1/x") is not (11, "/x").
    assert numpy_rng(1, "1/x").random() != numpy_rng(11, "/x").random()


def test_neighboring_streams_never_overlap() -> None:
    long = numpy_rng(0, "noise", 0, 0).integers(0, 2**62, 4096)
    following = numpy_rng(0, "noise", 0, 1).integers(0, 2**62, 4096)
    assert not set(long.tolist()) & set(following.tolist())


def test_samples_are_standard_normal_and_uniform() -> None:
    indices = torch.arange(400)
    normal = sample_normal((50,), 0, "noise", torch.zeros_like(indices), indices)
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.02
    across = sample_uniform(0, "sigma", torch.zeros_like(indices), indices)
    assert across.dtype == torch.float64
    assert 0 <= float(across.min()) < 0.02
    assert 0.98 < float(across.max()) < 1
    assert abs(float(across.mean()) - 0.5) < 0.05
    correlation = np.corrcoef(across[:-1], across[1:])[0, 1]
    assert abs(correlation) < 0.15


def test_global_states_of_torch_and_numpy_stay_unchanged() -> None:
    before, numpy_before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    sample_normal((4,), 0, "noise", EPOCHS, INDICES)
    generator(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(np.random.get_state()) == numpy_before  # noqa: NPY002


def test_more_than_two_counters_are_refused() -> None:
    with pytest.raises(ValueError, match="at most two counters"):
        numpy_rng(0, "noise", 1, 2, 3)


def test_a_generator_lives_on_the_cpu_and_repeats() -> None:
    one, two = generator(5), generator(5)
    assert one.device.type == "cpu"
    assert torch.equal(torch.randn(3, generator=one), torch.randn(3, generator=two))
