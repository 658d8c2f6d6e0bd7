"""Guidance formulas: identities, limits, and epsilon against v."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendistill.generator.sampler import acts_at, classifier_free, mode_guidance, mode_weight
from gendistill.objectives.diffusion import predicted_x0
from gendistill.seeding import torch_rng

TYPES = ("epsilon", "v_prediction")
alpha_bars = st.floats(1e-3, 0.999)


def draw(seed: int, count: int = 4) -> list[Tensor]:
    return [torch.randn(2, 3, 4, 4, generator=torch_rng(seed, i), dtype=torch.float64) for i in range(count)]


def both(alpha_bar: float) -> Tensor:
    """For two images, the second one less noisy."""
    return torch.tensor([alpha_bar, (1 + alpha_bar) / 2], dtype=torch.float64)


@pytest.mark.parametrize(("level", "acts"), [(0.29, False), (0.3, True), (0.5, True), (0.8, True), (0.81, False)])
def test_the_interval_is_closed(level: float, acts: bool) -> None:
    assert acts_at(level, (0.3, 0.8)) is acts


def test_classifier_free_guidance_extrapolates_from_the_null_prediction() -> None:
    with_class, null = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0])
    assert torch.equal(classifier_free(with_class, null, 1), with_class)
    assert torch.equal(classifier_free(with_class, null, 0), null)
    assert classifier_free(with_class, null, 4).tolist() == [2.5, -4.0]


def test_classifier_free_guidance_can_leave_the_last_channels_to_the_class() -> None:
    with_class, null = torch.randn(2, 3, 4, 4, 4).unbind(0)
    guided = classifier_free(with_class, null, 4, 3)
    torch.testing.assert_close(guided[:, :3], null[:, :3] + 4 * (with_class - null)[:, :3])
    assert torch.equal(guided[:, 3:], with_class[:, 3:])
    assert torch.equal(classifier_free(with_class, null, 4, 4), classifier_free(with_class, null, 4))


@settings(deadline=None)
@given(st.integers(0, 100), alpha_bars, st.floats(0, 20), st.sampled_from(TYPES))
def test_x0_moves_by_its_weight_toward_the_mode(seed: int, alpha_bar: float, scale: float, kind: str) -> None:
    output, xt, mode, _ = draw(seed)
    alpha_bars = both(alpha_bar)
    before = predicted_x0(output, xt, alpha_bars, kind)
    after = predicted_x0(mode_guidance(output, xt, mode, alpha_bars, scale, kind), xt, alpha_bars, kind)
    weight = mode_weight(alpha_bars, scale).view(-1, 1, 1, 1)
    assert ((weight >= 0) & (weight <= 1)).all()
    torch.testing.assert_close(after, before + weight * (mode - before))


@settings(deadline=None)
@given(st.integers(0, 100), alpha_bars, st.floats(0, 20))
def test_epsilon_and_v_are_guided_alike(seed: int, alpha_bar: float, scale: float) -> None:
    eps, xt, mode, _ = draw(seed)
    alpha_bars = both(alpha_bar)
    signal, noise = (a.sqrt().view(-1, 1, 1, 1) for a in (alpha_bars, 1 - alpha_bars))
    v = signal * eps - noise * predicted_x0(eps, xt, alpha_bars, "epsilon")
    guided = [
        predicted_x0(mode_guidance(output, xt, mode, alpha_bars, scale, kind), xt, alpha_bars, kind)
        for output, kind in ((eps, "epsilon"), (v, "v_prediction"))
    ]
    torch.testing.assert_close(guided[0], guided[1], rtol=1e-6, atol=1e-6)


def test_a_moderate_scale_is_the_papers_correction_of_epsilon() -> None:
    eps, xt, mode, _ = draw(0)
    alpha_bars = both(0.6)
    g = mode - predicted_x0(eps, xt, alpha_bars, "epsilon")
    wanted = eps - 0.1 * (1 - alpha_bars).sqrt().view(-1, 1, 1, 1) * g
    torch.testing.assert_close(mode_guidance(eps, xt, mode, alpha_bars, 0.1, "epsilon"), wanted)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("alpha_bar", [2.4e-9, 4e-5, 0.5, 0.999])
def test_scale_zero_changes_nothing_and_a_large_one_predicts_the_mode(kind: str, alpha_bar: float) -> None:
    output, xt, mode, _ = (x.float() for x in draw(1))
    alpha_bars = torch.full((2,), alpha_bar)
    assert torch.equal(mode_guidance(output, xt, mode, alpha_bars, 0.0, kind), output)
    guided = mode_guidance(output, xt, mode, alpha_bars, 1e9, kind)
    if kind == "epsilon":  # whose x0 cannot be read back in fp32
        noise, signal = (1 - alpha_bars[0]).sqrt(), alpha_bars[0].sqrt()
        torch.testing.assert_close(guided, (xt - signal * mode) / noise, rtol=1e-3, atol=1e-4)
    else:
        torch.testing.assert_close(predicted_x0(guided, xt, alpha_bars, kind), mode, rtol=1e-4, atol=1e-5)


def test_pure_noise_is_guided_without_infinities() -> None:
    output, xt, mode, _ = draw(2)
    for scale in (0.0, 0.1):
        assert mode_guidance(output, xt, mode, torch.zeros(2).double(), scale, "v_prediction").isfinite().all()


def test_shapes_that_would_broadcast_are_refused() -> None:
    output, xt, mode, _ = draw(3)
    with pytest.raises(ValueError, match="must agree"):
        mode_guidance(output, xt, mode[:1], both(0.5), 0.1, "epsilon")
