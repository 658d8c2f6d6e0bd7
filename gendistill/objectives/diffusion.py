"""Denoising objectives of a variance-preserving diffusion, as pure functions.

Legend: x0, xt, eps (B,C,H,W); t (B,) int64; alphas_cumprod (T,), the cumulative product of 1 - beta; alpha_bar (B,),
its entry at each image's timestep. xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (Ho et al. 2020, eq. 4).
Learned range: a network may output 2C channels, the last C of them interpolating the log variance of the reverse step
(Nichol & Dhariwal 2021, arXiv 2102.09672).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal


def _columns(value: Tensor, like: Tensor) -> Tensor:
    return value.view((-1,) + (1,) * (like.dim() - 1))


def _spread(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    return _columns(alpha_bar.sqrt(), like), _columns((1 - alpha_bar).sqrt(), like)


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noised image xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, (B,C,H,W) (Ho et al. 2020, eq. 4).

    Args:
        x0: Images or latents, (B,C,H,W).
        eps: Standard normal noise, (B,C,H,W).
        alpha_bar: At each image's timestep, (B,), in [0, 1].
    """
    signal, noise = _spread(alpha_bar, x0)
    return signal * x0 + noise * eps


def timestep_probabilities(alphas_cumprod: Tensor, mean: float, std: float) -> Tensor:
    """Probabilities (T,) of timesteps whose log(sigma / sqrt(alpha_bar)) is normal, in float64.

    p_t = F(b_{t+1}) - F(b_t) with F the distribution function of N(mean, std^2) and b the middle between the logarithms
    of two timesteps, without bounds at both ends. Source: EDM (Karras et al. 2022, arXiv 2206.00364, table 1), whose
    sigma is our sigma / sqrt(alpha_bar); mean 0 and std 1 are the logit-normal times of rectified flow (Esser et al.
    2024, arXiv 2403.03206, section 3.1).

    Args:
        alphas_cumprod: (T,), in (0, 1), falling.
        mean: Of the logarithm.
        std: Of the logarithm, more than 0.
    """
    alphas = alphas_cumprod.double()
    logarithms = 0.5 * ((1 - alphas) / alphas).log()
    inner = Normal(mean, std).cdf((logarithms[1:] + logarithms[:-1]) / 2)
    return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)]).diff()


def target(x0: Tensor, eps: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The target of the network: eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0, (B,C,H,W).

    Source of v: Salimans & Ho 2022 (arXiv 2202.00512), section 4 and appendix D.

    Args:
        x0: Images or latents, (B,C,H,W).
        eps: The noise added to them, (B,C,H,W).
        alpha_bar: At each image's timestep, (B,), in [0, 1].
        prediction_type: ``epsilon`` or ``v_prediction``.
    """
    signal, noise = _spread(alpha_bar, x0)
    return signal * eps - noise * x0 if prediction_type == "v_prediction" else eps


def predicted_x0(output: Tensor, xt: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The x0 that the network's output implies, (B,C,H,W).

    (xt - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar), whose error grows like 1 / sqrt(alpha_bar), or
    sqrt(alpha_bar) xt - sqrt(1 - alpha_bar) v, whose error does not.

    Args:
        output: The prediction, eps or v, (B,C,H,W), without a learned variance.
        xt: The network's input, (B,C,H,W).
        alpha_bar: At each image's timestep, (B,), in (0, 1].
        prediction_type: ``epsilon`` or ``v_prediction``.
    """
    signal, noise = _spread(alpha_bar, xt)
    return signal * xt - noise * output if prediction_type == "v_prediction" else (xt - noise * output) / signal


def velocity_weights(alpha_bar: Tensor) -> Tensor:
    """Weights (B,) in [1, 2] that turn the squared error of v into that of the velocity eps - x0 of rectified flow.

    (sqrt(alpha_bar) + sqrt(1 - alpha_bar))^2, largest where signal and noise are equal. Rectified flow (Liu et al.
    2022, arXiv 2209.03003) sees the same xt, divided by sqrt(alpha_bar) + sqrt(1 - alpha_bar), and predicts eps - x0;
    at one xt its error is that of v times this sum.

    Args:
        alpha_bar: At each image's timestep, (B,), in [0, 1].
    """
    return (alpha_bar.sqrt() + (1 - alpha_bar).sqrt()).square()


def denoising_loss(output: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over images, channels and pixels of w (output - wanted)^2, a scalar in fp32 (Ho et al. 2020, eq. 14).

    Args:
        output: The prediction, (B,C,H,W), of any floating type.
        wanted: Its target, (B,C,H,W).
        weights: w of each image, (B,); 1 by default.
    """
    errors = (output.float() - wanted.float()).square()
    return errors.mean() if weights is None else (_columns(weights.float(), errors) * errors).mean()


def split_prediction(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """The prediction (B,C,H,W) and, of an output with 2C channels, the variance values v (B,C,H,W), else None.

    Raises:
        ValueError: the output has neither C nor 2C channels.
    """
    if output.shape[1] not in (channels, 2 * channels):
        raise ValueError(f"The network outputs {output.shape[1]} channels; expected {channels} or {2 * channels}.")
    return output[:, :channels], output[:, channels:] if output.shape[1] > channels else None


def _beta(t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(beta_t, alpha_bar_t, alpha_bar_{t-1}), each (B,); alpha_bar_{-1} = 1."""
    now = alphas_cumprod[t]
    before = torch.where(t > 0, alphas_cumprod[(t - 1).clamp(min=0)], 1)
    return (before - now) / before, now, before  # 1 - now / before would lose beta's last digits in fp32


def _log_posterior_variance(t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """log of beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t), (B,) (Ho et al. 2020, eq. 7); at t = 0 that of t = 1.

    T must be at least 2.
    """
    beta, now, before = _beta(t.clamp(min=1), alphas_cumprod)
    return (beta * (1 - before) / (1 - now)).log()


def learned_log_variance(variance: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """f log beta_t + (1 - f) log posterior variance with f = (v + 1) / 2, in fp32 (Nichol & Dhariwal 2021, eq. 15).

    ``variance`` holds the network's v (B,C,H,W), nominally in [-1, 1] and, as there, not clipped.
    """
    low = _columns(_log_posterior_variance(t, alphas_cumprod.float()), variance)
    high = _columns(_beta(t, alphas_cumprod.float())[0].log(), variance)
    return low + (variance.float() + 1) / 2 * (high - low)


def variational_bound(
    x0: Tensor, xt: Tensor, eps: Tensor, variance: Tensor, t: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """Each image's term of the variational bound in bits per dimension, (B,), in fp32.

    L_t = KL(q(x_{t-1} | xt, x0) || p(x_{t-1} | xt)) for t > 0, -log p(x0 | xt) for t = 0 (Ho et al. 2020, eq. 5 to 7
    and 13). The predicted noise gives the mean of p and is detached: the bound trains only the variance, the squared
    error trains eps (Nichol & Dhariwal 2021, section 3.1). Where we differ from the released DiT and Minimax code: the
    normal distribution function is exact.

    Args:
        x0: Images (B,C,H,W) in [-1, 1]; the released code applies the same decoder to latents.
        xt: The noised images, (B,C,H,W).
        eps: The PREDICTED noise, (B,C,H,W).
        variance: The network's v (B,C,H,W), nominally in [-1, 1].
        t: Timesteps, (B,) int64 in [0, T).
        alphas_cumprod: (T,).
    """
    x0, xt, eps = x0.float(), xt.float(), eps.detach().float()
    beta, now, before = _beta(t, alphas_cumprod.float())
    signal, noise = _spread(now, xt)
    step = _columns(beta / ((1 - now) * now / before).sqrt(), xt)
    log_variance = learned_log_variance(variance, t, alphas_cumprod)
    # Both means are (xt - beta / sqrt(1 - alpha_bar) eps) / sqrt(1 - beta), one of them with the true noise.
    gap = step * (eps - (xt - signal * x0) / noise)
    low = _columns(_log_posterior_variance(t, alphas_cumprod.float()), xt)
    divergence = _normal_kl(gap, low, log_variance)
    decoder = _decoder_nll(x0, predicted_x0(eps, xt, now, "epsilon"), log_variance)
    nats = torch.where(_columns(t == 0, xt), decoder, divergence)
    return nats.flatten(1).mean(1) / math.log(2)


def _normal_kl(gap: Tensor, log_variance: Tensor, other: Tensor) -> Tensor:
    """KL(N(a, exp(log_variance)) || N(b, exp(other))) by element, gap = a - b."""
    return 0.5 * (other - log_variance - 1 + (log_variance - other).exp() + gap.square() * (-other).exp())


def _decoder_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the normal's mass in the bin of width 2/255 around x0 (Ho et al. 2020, eq. 13), at most -log 1e-12.

    The bins of -1 and 1 reach to infinity.
    """
    per_std = (-0.5 * log_variance).exp()
    centred = x0 - mean
    low = torch.where(x0 < -0.999, -torch.inf, per_std * (centred - 1 / 255))
    high = torch.where(x0 > 0.999, torch.inf, per_std * (centred + 1 / 255))
    # Mirrored into the upper tail, where fp32 still tells two small masses apart; special.ndtr would not.
    mirrored = centred < 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    mass = 0.5 * (torch.erfc(low / math.sqrt(2)) - torch.erfc(high / math.sqrt(2)))
    return -mass.clamp(min=1e-12).log()
