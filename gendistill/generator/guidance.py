"""Guidance of the reverse process, as pure functions on the network's prediction.

Legend: output, xt, mode (B,c,h,w); alpha_bar (B,), the cumulative product of 1 - beta at each image's timestep;
sigma^2 = 1 - alpha_bar; level = t / T, the noise level, from 0 (clean) to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gendistill.objectives.diffusion import predicted_x0


def acts_at(level: float, interval: tuple[float, float]) -> bool:
    """Whether low <= level <= high, the noise levels where guidance pays (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    Where we differ: the paper gives the interval as the standard deviation of the noise; t / T grows with it and has
    one range for all schedules.

    Args:
        level: t / T, in [0, 1].
        interval: (low, high), in [0, 1].
    """
    low, high = interval
    return low <= level <= high


def classifier_free(with_class: Tensor, without: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: null + scale * (class - null) (Ho & Salimans 2022, arXiv 2207.12598, eq. 6).

    ``scale`` is the paper's 1 + w. The formula is linear, so it serves epsilon and v alike. Where we differ: all
    channels are guided, as in diffusers' DiTPipeline; the released DiT code guides only the first three latent
    channels.

    Args:
        with_class: The prediction for the class, (B,c,h,w), without a learned variance.
        without: The prediction for the null class, (B,c,h,w).
        scale: At least 1; 1 is no guidance.

    Returns:
        The guided prediction, (B,c,h,w).
    """
    return without + scale * (with_class - without)


def mode_weight(alpha_bar: Tensor, scale: float) -> Tensor:
    """The share w of the way from x0 to its mode: min(1, scale * sigma^2 / sqrt(alpha_bar)).

    Args:
        alpha_bar: (B,), in [0, 1].
        scale: lambda, at least 0.

    Returns:
        (B,), in [0, 1].
    """
    signal = alpha_bar.sqrt().clamp(min=torch.finfo(alpha_bar.dtype).tiny)
    return (scale * (1 - alpha_bar) / signal).clamp(max=1)


def mode_guidance(
    output: Tensor, xt: Tensor, mode: Tensor, alpha_bar: Tensor, scale: float, prediction_type: str
) -> Tensor:
    """Mode guidance of MGD3 (Chan-Santiago et al. 2025, arXiv 2505.18963): moves the predicted x0 toward a mode.

    eps' = eps - scale * sigma * g with g = mode - x0(eps), which is x0' = x0 + w g with w = scale * sigma^2 /
    sqrt(alpha_bar), and v' = v - (w / sigma) g. A scale of 0 changes nothing; a large one puts the mode in x0's place.

    Where we differ: the released code adds scale * std * g to each step of ancestral sampling, so that its strength
    depends on the number of steps and other solvers have none; shifting the prediction serves every solver. And w is
    at most 1: at the noisiest timesteps 1 / sqrt(alpha_bar) reaches hundreds to thousands and would throw x0 far
    beyond the mode.

    Args:
        output: The prediction, epsilon or v, (B,c,h,w), without a learned variance.
        xt: The network's input, (B,c,h,w).
        mode: A cluster centre of each image's class, (B,c,h,w), in the space of xt.
        alpha_bar: (B,), in [0, 1).
        scale: lambda, at least 0; 0.1 in the paper.
        prediction_type: ``epsilon`` or ``v_prediction``.

    Returns:
        The guided prediction, (B,c,h,w), of the same type as ``output``.

    Raises:
        ValueError: the shapes differ.
    """
    if not output.shape == xt.shape == mode.shape:
        raise ValueError(f"output {tuple(output.shape)}, xt {tuple(xt.shape)} and mode {tuple(mode.shape)} must agree.")
    columns = (-1,) + (1,) * (xt.dim() - 1)
    noise = (1 - alpha_bar).sqrt().view(columns)
    shift = mode_weight(alpha_bar, scale).view(columns) * (mode - predicted_x0(output, xt, alpha_bar, prediction_type))
    if prediction_type == "v_prediction":
        return output - shift / noise
    return output - shift * alpha_bar.sqrt().view(columns) / noise
