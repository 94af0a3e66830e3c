"""The feature normalizer: kept components, their scales and the inverse map."""

import pytest
import torch

from blip3o.models.encoders.normalizer import FeatureNormalizer, FeatureNormalizerConfig


def inverse(normalizer: FeatureNormalizer, normalized: torch.Tensor) -> torch.Tensor:
    return normalized @ normalizer.backward_map + normalizer.mean


def correlated(num: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(channels, channels, generator=generator)
    return torch.randn(num, 4, channels, generator=generator) @ mix + 3.0


def fitted(power: float, num_components: int, features: torch.Tensor) -> FeatureNormalizer:
    config = FeatureNormalizerConfig(num_components=num_components, power=power)
    normalizer = FeatureNormalizer(config, features.shape[-1])
    normalizer.fit(features)
    return normalizer


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_all_components_can_be_inverted_and_have_mean_variance_one(power: float) -> None:
    features = correlated(200, 6)
    normalizer = fitted(power, 6, features)
    normalized = normalizer(features)
    torch.testing.assert_close(inverse(normalizer, normalized), features, rtol=0, atol=1e-4)
    variance = normalized.flatten(0, 1).var(0)
    assert float(variance.mean()) == pytest.approx(1.0, abs=1e-3)
    assert float(normalized.mean().abs()) < 1e-4


def test_full_whitening_makes_all_variances_one() -> None:
    features = correlated(400, 6)
    variance = fitted(1.0, 6, features)(features).flatten(0, 1).var(0)
    torch.testing.assert_close(variance, torch.ones(6), rtol=0, atol=1e-3)


def test_a_floor_keeps_nearly_constant_components_small() -> None:
    features = correlated(400, 3)
    features = torch.cat([features, 1e-3 * features[..., :1].tanh()], -1)
    config = FeatureNormalizerConfig(num_components=4, power=1.0, floor=0.01)
    normalizer = FeatureNormalizer(config, 4)
    normalizer.fit(features)
    variance = normalizer(features).flatten(0, 1).var(0)
    assert float(variance[:3].min()) > 0.5
    assert float(variance[3]) < 1e-3
    torch.testing.assert_close(
        inverse(normalizer, normalizer(features)), features, rtol=0, atol=1e-4
    )
    with pytest.raises(ValueError, match="floor must be at least 0"):
        FeatureNormalizerConfig(floor=-1.0)


def test_first_components_keep_more_than_any_others() -> None:
    features = correlated(400, 8)
    normalizer = fitted(0.5, 3, features)
    kept = inverse(normalizer, normalizer(features))
    lost = (kept - features).square().mean()
    spectrum = torch.linalg.eigvalsh(features.flatten(0, 1).T.cov())
    assert float(lost) == pytest.approx(float(spectrum[:-3].sum() / 8), rel=0.02)


def test_identity_returns_its_input() -> None:
    normalizer = FeatureNormalizer(FeatureNormalizerConfig(), 6)
    features = correlated(3, 6)
    assert normalizer(features) is features
    assert not normalizer.state_dict()


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        fitted(0.5, 4, correlated(1, 6))
