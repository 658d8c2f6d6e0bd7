"""Denoising objectives of a variance-preserving diffusion, as pure functions.

Legend: x0, xt, eps (B,C,H,W); alpha_bar (B,), the cumulative product of 1 - beta at each image's timestep.
xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (Ho et al. 2020, eq. 4).
"""

from __future__ import annotations

from torch import Tensor


def _spread(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1,) + (1,) * (like.dim() - 1)
    return alpha_bar.sqrt().view(shape), (1 - alpha_bar).sqrt().view(shape)


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """xt (Ho et al. 2020, eq. 4)."""
    signal, noise = _spread(alpha_bar, x0)
    return signal * x0 + noise * eps


def target(x0: Tensor, eps: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """What the network should output: eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0.

    Salimans & Ho 2022 (arXiv 2202.00512), section 4 and appendix D.
    """
    signal, noise = _spread(alpha_bar, x0)
    return signal * eps - noise * x0 if prediction_type == "v_prediction" else eps


def predicted_x0(output: Tensor, xt: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """x0 implied by the network's output; for eps its error grows like sqrt(1 / alpha_bar), for v it does not."""
    signal, noise = _spread(alpha_bar, xt)
    return signal * xt - noise * output if prediction_type == "v_prediction" else (xt - noise * output) / signal


def denoising_loss(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error over everything (Ho et al. 2020, eq. 14), in fp32."""
    return (output.float() - wanted.float()).square().mean()
