"""Non-finite values lead to advice, and other errors pass unchanged."""

import pytest
import torch

from blip3o.core.errors import NotFiniteError, UsageError
from blip3o.imaging.pixels import to_image
from blip3o.train.diverged import DivergedError, are_finite, explaining, have_diverged

GOOD = [torch.ones(2, 2), torch.zeros(0)]


def test_non_finite_pixels_lead_to_advice() -> None:
    with (
        pytest.raises(UsageError, match=r"step 7 .*not numbers.*lower train\.optimizer\.lr .*0\.5"),
        explaining(7, 0.5, GOOD),
    ):
        to_image(torch.full((3, 2, 2), float("nan")))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e6])
def test_any_error_of_a_diverged_model_leads_to_advice(bad: float) -> None:
    weights = [*GOOD, torch.tensor([0.0, bad])]
    assert have_diverged(weights)
    assert are_finite(weights) == (bad == -1e6)
    for error in (ValueError("x"), RuntimeError("probability tensor"), ZeroDivisionError()):
        with pytest.raises(DivergedError, match="diverged"), explaining(1, 1.0, weights):
            raise error


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError, UsageError])
def test_errors_of_a_healthy_model_pass_unchanged(error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^'?something else'?$"), explaining(1, 1.0, GOOD):
        raise error("something else")


def test_the_error_is_still_a_value_error() -> None:
    assert issubclass(NotFiniteError, ValueError)
