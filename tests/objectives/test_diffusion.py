"""Noising and targets against diffusers; the predicted x0 as their inverse."""

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.objectives.diffusion import add_noise, denoising_loss, predicted_x0, target

TYPES = ("epsilon", "v_prediction")


@pytest.fixture(params=["linear", "squaredcos_cap_v2"])
def problem(request):
    scheduler = DDPMScheduler(beta_schedule=request.param)
    rng = torch.Generator().manual_seed(0)
    t = torch.tensor([0, 1, 499, 980, 999])
    x0, eps = torch.randn(2, 5, 3, 4, 4, generator=rng)
    return scheduler, x0, eps, t, scheduler.alphas_cumprod[t]


def test_add_noise_equals_diffusers(problem):
    scheduler, x0, eps, t, alpha_bar = problem
    torch.testing.assert_close(add_noise(x0, eps, alpha_bar), scheduler.add_noise(x0, eps, t))


def test_velocity_target_equals_diffusers(problem):
    scheduler, x0, eps, t, alpha_bar = problem
    torch.testing.assert_close(target(x0, eps, alpha_bar, "v_prediction"), scheduler.get_velocity(x0, eps, t))


def test_epsilon_target_is_the_noise(problem):
    _, x0, eps, _, alpha_bar = problem
    assert torch.equal(target(x0, eps, alpha_bar, "epsilon"), eps)


@pytest.mark.parametrize("kind", TYPES)
def test_predicted_x0_equals_diffusers(problem, kind):
    scheduler, x0, output, t, alpha_bar = problem
    kept = t < 999  # there the cosine schedule's alpha_bar is 2e-9, and eps prediction divides by its root
    reference = DDPMScheduler.from_config(scheduler.config, prediction_type=kind, clip_sample=False)
    for i in torch.nonzero(kept).flatten().tolist():
        expected = reference.step(output[i], int(t[i]), x0[i]).pred_original_sample
        found = predicted_x0(output[i : i + 1], x0[i : i + 1], alpha_bar[i : i + 1], kind)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(TYPES),
    st.lists(st.floats(1e-4, 1 - 1e-7), min_size=1, max_size=4),
    st.integers(0, 2**32),
    st.sampled_from([(3,), (2, 5), (1, 4, 4)]),
)
def test_predicted_x0_inverts_the_target(kind, alpha_bar, seed, shape):
    rng = torch.Generator().manual_seed(seed)
    alpha_bar = torch.tensor(alpha_bar, dtype=torch.float64)
    x0, eps = torch.randn(2, len(alpha_bar), *shape, generator=rng, dtype=torch.float64)
    output = target(x0, eps, alpha_bar, kind)
    torch.testing.assert_close(predicted_x0(output, add_noise(x0, eps, alpha_bar), alpha_bar, kind), x0)


def test_denoising_loss_by_hand():
    assert denoising_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])).item() == 5.0


def test_denoising_loss_of_half_precision_is_computed_in_fp32():
    output, wanted = torch.full((4096,), 300.0).half(), torch.zeros(4096).half()
    assert denoising_loss(output, wanted).item() == 90_000.0
