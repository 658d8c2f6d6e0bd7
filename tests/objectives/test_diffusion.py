"""Noising, targets and learned variances against diffusers; the variational bound against a slow float64 loop."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from gendistill.objectives.diffusion import (
    add_noise,
    denoising_loss,
    learned_log_variance,
    predicted_x0,
    split_prediction,
    target,
    timestep_probabilities,
    variational_bound,
    velocity_weights,
)

TYPES = ("epsilon", "v_prediction")
SCHEDULES = ("linear", "squaredcos_cap_v2")
TIMES = (0, 1, 2, 37, 499, 980, 999)


@pytest.fixture(params=SCHEDULES)
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


def test_weights_of_the_denoising_loss_multiply_each_images_error():
    output, wanted = torch.tensor([[[[3.0]]], [[[1.0]]]]), torch.zeros(2, 1, 1, 1)
    assert denoising_loss(output, wanted, torch.tensor([1.0, 2.0])).item() == (9 + 2) / 2


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1), st.integers(0, 2**32))
def test_weighted_errors_of_v_are_those_of_the_velocity_at_the_same_noisy_image(alpha_bar, seed):
    rng = torch.Generator().manual_seed(seed)
    xt, v, wanted = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5

    def velocity(v):
        return (noise * xt + signal * v) - (signal * xt - noise * v)  # eps - x0

    weights = velocity_weights(torch.tensor([alpha_bar], dtype=torch.float64))
    assert 1 <= weights <= 2 + 1e-12
    torch.testing.assert_close(weights * (v - wanted).square(), (velocity(v) - velocity(wanted)).square())


def test_denoising_loss_of_half_precision_is_computed_in_fp32():
    output, wanted = torch.full((4096,), 300.0).half(), torch.zeros(4096).half()
    assert denoising_loss(output, wanted).item() == 90_000.0


def test_split_prediction_takes_the_first_channels_as_prediction():
    output = torch.arange(2 * 6).view(2, 6, 1, 1)
    prediction, variance = split_prediction(output, 3)
    assert torch.equal(prediction, output[:, :3])
    assert torch.equal(variance, output[:, 3:])


def test_split_prediction_without_variance():
    output = torch.ones(2, 3, 4, 4)
    prediction, variance = split_prediction(output, 3)
    assert torch.equal(prediction, output)
    assert variance is None


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 7, 9])
def test_split_prediction_refuses_other_numbers_of_channels(channels):
    with pytest.raises(ValueError, match=f"outputs {channels} channels; expected 3 or 6"):
        split_prediction(torch.ones(2, channels, 4, 4), 3)


def bound_problem(schedule, seed=0, error=0.5, times=TIMES):
    """Images with the edges -1 and 1 in them, a noise prediction off by ``error``, variance values in [-1, 1]."""
    rng = torch.Generator().manual_seed(seed)
    alphas_cumprod = DDPMScheduler(beta_schedule=schedule).alphas_cumprod
    t = torch.tensor(times)
    x0 = torch.randn(len(t), 2, 3, 3, generator=rng).clamp(-1, 1)
    noise, off = torch.randn(2, *x0.shape, generator=rng)
    variance = 2 * torch.rand(x0.shape, generator=rng) - 1
    xt = add_noise(x0, noise, alphas_cumprod[t])
    return x0, xt, noise + error * off, variance, t, alphas_cumprod


def terms(i, x0, xt, eps, variance, t, alphas_cumprod):
    """q, p and alpha_bar of image i in float64, by Ho et al. 2020, eq. 7, with x0 put where the paper has it."""
    x0, xt, eps, variance = (value[i].double() for value in (x0, xt, eps, variance))
    bar = alphas_cumprod.double()
    now, before = bar[t[i]], bar[t[i] - 1] if t[i] > 0 else torch.tensor(1.0).double()
    beta = 1 - now / before

    def mean(clean):
        return (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * xt) / (1 - now)

    spread = beta * (1 - before) / (1 - now) if t[i] > 0 else (1 - bar[1] / bar[0]) * (1 - bar[0]) / (1 - bar[1])
    share = (variance + 1) / 2
    std = torch.exp(0.5 * (share * beta.log() + (1 - share) * spread.log()))
    guess = (xt - (1 - now).sqrt() * eps) / now.sqrt()
    return Normal(mean(x0), spread.sqrt()), Normal(mean(guess).detach(), std)


def slow_bound(*problem):
    """One image after the other; KL by torch.distributions, the decoder pixel by pixel."""
    x0, t, bits = problem[0].double(), problem[4], []
    for i in range(len(t)):
        q, p = terms(i, *problem)
        if t[i] > 0:
            nats = kl_divergence(q, p).flatten()
        else:
            nats = []
            for value, mean, std in zip(x0[i].flatten(), p.mean.flatten(), p.stddev.flatten(), strict=True):
                one = Normal(mean, std)
                above = 1.0 if value > 0.999 else one.cdf(value + 1 / 255)
                below = 0.0 if value < -0.999 else one.cdf(value - 1 / 255)
                nats.append(-(above - below).clamp(min=1e-12).log())
            nats = torch.stack(nats)
        bits.append(nats.mean() / math.log(2))
    return torch.stack(bits)


@pytest.mark.parametrize("error", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variational_bound_equals_the_slow_loop(schedule, error):
    problem = bound_problem(schedule, error=error)
    found = variational_bound(*problem)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), slow_bound(*problem), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SCHEDULES), st.integers(0, 2**32), st.lists(st.integers(0, 999), min_size=1, max_size=5))
def test_variational_bound_of_any_timesteps_equals_the_slow_loop(schedule, seed, times):
    problem = bound_problem(schedule, seed=seed, times=times)
    expected = slow_bound(*problem)
    torch.testing.assert_close(variational_bound(*problem).double(), expected, rtol=1e-4, atol=1e-5)
    assert (expected >= 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradient_of_the_bound_reaches_the_variance_alone(schedule):
    x0, xt, eps, variance, t, alphas_cumprod = bound_problem(schedule)
    inputs = [value.clone().requires_grad_() for value in (eps, variance)]
    variational_bound(x0, xt, *inputs, t, alphas_cumprod).sum().backward()
    assert inputs[0].grad is None
    slow = variance.double().requires_grad_()
    slow_bound(x0, xt, eps, slow, t, alphas_cumprod).sum().backward()
    torch.testing.assert_close(inputs[1].grad.double(), slow.grad, rtol=1e-4, atol=1e-6)


def test_bound_is_least_at_the_true_variance():
    """With the true noise, KL is least, and 0, where p's variance is the posterior's, v = -1."""
    x0, xt, eps, variance, t, alphas_cumprod = bound_problem("linear", error=0, times=(1, 10, 100))
    best = variational_bound(x0, xt, eps, -torch.ones_like(variance), t, alphas_cumprod)
    torch.testing.assert_close(best, torch.zeros(3), rtol=0, atol=1e-5)
    assert (variational_bound(x0, xt, eps, variance, t, alphas_cumprod) > best + 1e-6).all()


def test_bound_of_hopeless_predictions_is_finite():
    """The first step's mass underflows here; the log must not, nor its gradient."""
    x0, xt, eps, variance, t, alphas_cumprod = bound_problem("linear", error=1000.0)
    variance = variance.requires_grad_()
    bits = variational_bound(x0, xt, eps, variance, t, alphas_cumprod)
    bits.sum().backward()
    assert bits.isfinite().all()
    assert variance.grad.isfinite().all()
    assert bits[0] <= -math.log2(1e-12) + 1e-3


def test_bound_of_half_precision_is_computed_in_fp32():
    x0, xt, eps, variance, t, alphas_cumprod = bound_problem("squaredcos_cap_v2")
    eps, variance = eps.bfloat16(), variance.bfloat16()
    found = variational_bound(x0, xt, eps, variance, t, alphas_cumprod)
    assert torch.equal(found, variational_bound(x0, xt, eps.float(), variance.float(), t, alphas_cumprod))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learned_log_variance_equals_diffusers(schedule):
    scheduler = DDPMScheduler(beta_schedule=schedule, variance_type="learned_range")
    variance = 2 * torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)) - 1
    found = learned_log_variance(variance, torch.arange(1000), scheduler.alphas_cumprod)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # in fp32 its 1 - a / b loses digits that ours keeps
    # Step 0 has no posterior variance: diffusers never uses it, the bound takes that of step 1.
    expected = torch.stack([scheduler._get_variance(t, variance[t].double()) for t in range(1, 1000)])
    torch.testing.assert_close(found[1:].double(), expected, rtol=1e-5, atol=1e-5)


def test_variance_of_the_first_step_lies_between_its_beta_and_the_next_posterior_variance():
    alphas_cumprod = DDPMScheduler(beta_schedule="linear").alphas_cumprod
    found = learned_log_variance(torch.tensor([[1.0], [-1.0], [-1.0]]), torch.tensor([0, 0, 1]), alphas_cumprod)
    assert found[0].item() == pytest.approx(math.log(1e-4), abs=1e-3)
    assert found[1] == found[2]


def test_nothing_of_the_bound_is_read_on_the_host():
    problem = [value.to("meta") for value in bound_problem("linear")]
    assert variational_bound(*problem).shape == (len(TIMES),)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 1.2)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timesteps_of_log_normal_noise_have_its_moments(schedule: str, mean: float, std: float) -> None:
    alphas = DDPMScheduler(beta_schedule=schedule).alphas_cumprod.double()
    found = timestep_probabilities(alphas, mean, std)
    logarithms = 0.5 * ((1 - alphas) / alphas).log()
    middle = (found * logarithms).sum()
    assert found.shape == (1000,)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(), torch.tensor(1.0).double())
    assert abs(middle - mean) < 0.05 * std
    assert abs((found * (logarithms - middle).square()).sum().sqrt() - std) < 0.1 * std
    edges = (logarithms[1:] + logarithms[:-1]) / 2
    for t in (1, 300, 998):  # by a sum over many normal draws' distribution function, one entry at a time
        low, high = (0.5 * (1 + math.erf((float(edge) - mean) / std / math.sqrt(2))) for edge in edges[t - 1 : t + 1])
        assert float(found[t]) == pytest.approx(high - low, abs=1e-9)
