"""Guidance of sampling, as pure functions: classifier-free, toward targets, by transport plans, by repulsion.

Legend: B images of a batch, G images of a group, (c,h,w) what the network denoises, D = c h w; M atoms; alpha_bar (B,),
the cumulative product of 1 - beta at each image's timestep; sigma^2 = 1 - alpha_bar; level = t / T, the noise level,
from 0 (clean) to 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from gendistill.objectives import diffusion
from gendistill.transport.plans import entropic_plan, one_thread

SINKHORN_STEPS = 20_000  # of a plan; at the least regularisation one of 150 groups of digits needs more than 2000
REMEDY = "Take a larger regularisation (--transport_regularisation)."


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


def scale_of_third(level: float, windows: tuple[float, float, float]) -> float:
    """The scale of classifier-free guidance at a noise level: that of the third of [0, 1] in which it lies.

    Args:
        level: t / T, in [0, 1].
        windows: Scales for levels from 2/3, from 1/3 to 2/3, and below 1/3: from the noisiest third to the cleanest.
    """
    return windows[2 - min(2, int(3 * level))]


def classifier_free(with_class: Tensor, without: Tensor, scale: float, channels: int | None = None) -> Tensor:
    """Classifier-free guidance: null + scale * (class - null) (Ho & Salimans 2022, arXiv 2207.12598, eq. 6).

    ``scale`` is the paper's 1 + w. The formula is linear, so it serves epsilon and v alike. By default all channels are
    guided, as in diffusers' DiTPipeline; the released DiT and Minimax codes guide the first three latent channels.

    Args:
        with_class: The prediction for the class, (B,c,h,w), without a learned variance.
        without: The prediction for the null class, (B,c,h,w).
        scale: At least 0: 1 is no guidance, below 1 the two predictions are mixed.
        channels: Only the first so many are guided, from 1 to c; the others are those for the class.

    Returns:
        The guided prediction, (B,c,h,w).
    """
    guided = without + scale * (with_class - without)
    return guided if channels is None else torch.cat([guided[:, :channels], with_class[:, channels:]], 1)


def guidance_weight(alpha_bar: Tensor, scale: float) -> Tensor:
    """The share w of the way from x0 to its target: min(1, scale * sigma^2 / sqrt(alpha_bar)).

    Args:
        alpha_bar: (B,), in [0, 1].
        scale: lambda, at least 0.

    Returns:
        (B,), in [0, 1].
    """
    signal = alpha_bar.sqrt().clamp(min=torch.finfo(alpha_bar.dtype).tiny)
    return (scale * (1 - alpha_bar) / signal).clamp(max=1)


def move_x0_toward(
    output: Tensor, xt: Tensor, target: Tensor, alpha_bar: Tensor, scale: float, prediction_type: str
) -> Tensor:
    """Moves the predicted x0 toward a target: mode guidance of MGD3 (Chan-Santiago et al. 2025, arXiv 2505.18963).

    eps' = eps - scale * sigma * g with g = target - x0(eps), which is x0' = x0 + w g with w = scale * sigma^2 /
    sqrt(alpha_bar), and v' = v - (w / sigma) g. A scale of 0 changes nothing; a large one puts the target in x0's
    place. The paper's target is a mode, a cluster centre of each image's class.

    Where we differ: the released code adds scale * std * g to each step of ancestral sampling, so that its strength
    depends on the number of steps and other solvers have none; shifting the prediction serves every solver. And w is
    at most 1: at the noisiest timesteps 1 / sqrt(alpha_bar) reaches hundreds to thousands and would throw x0 far
    beyond the target.

    Args:
        output: The prediction, epsilon or v, (B,c,h,w), without a learned variance.
        xt: The network's input, (B,c,h,w).
        target: Where each image's x0 should go, (B,c,h,w), in the space of xt.
        alpha_bar: (B,), in [0, 1).
        scale: lambda, at least 0; 0.1 in the paper.
        prediction_type: ``epsilon`` or ``v_prediction``.

    Returns:
        The guided prediction, (B,c,h,w), of the same type as ``output``.

    Raises:
        ValueError: the shapes differ.
    """
    if not output.shape == xt.shape == target.shape:
        shapes = f"output {tuple(output.shape)}, xt {tuple(xt.shape)} and target {tuple(target.shape)}"
        raise ValueError(f"{shapes} must agree.")
    columns = (-1,) + (1,) * (xt.dim() - 1)
    noise = (1 - alpha_bar).sqrt().view(columns)
    x0 = diffusion.predicted_x0(output, xt, alpha_bar, prediction_type)
    shift = guidance_weight(alpha_bar, scale).view(columns) * (target - x0)
    if prediction_type == "v_prediction":
        return output - shift / noise
    return output - shift * alpha_bar.sqrt().view(columns) / noise


def transport_targets(x0: Tensor, atoms: Tensor, masses: Tensor, regularisation: float) -> Tensor:
    """Where a transport plan to atoms of a class sends each image of a group: barycentric projections.

        P = argmin over plans from masses 1/G to ``masses`` of <P, C> + regularisation * sum P log P
        C_im = |x0_i - atom_m|^2 / mean of all |x0_i - atom_m|^2
        target_i = sum_m P_im atom_m / sum_m P_im

    The plan gives each atom its share of the group, so that the images together cover the class as the atoms do, where
    each image's nearest atom could be the same one. All is computed in float64, by Sinkhorn's iterations.

    Source: the idea of DMGD (Wang et al. 2026, arXiv 2605.03877), to guide by an optimal-transport loss to k-means-like
    atoms in the middle part of sampling. Where we differ: we know the paper's idea but not its exact equations. It
    builds the set greedily; here a group is denoised together. It follows the gradient of the loss; here x0 moves
    toward barycentric targets.

    Args:
        x0: The predicted images of a group, (G,D).
        atoms: Cluster centres of the group's class, (M,D), in the space of x0.
        masses: Their shares of the class, (M,), above 0, of any sum.
        regularisation: Of the entropy, above 0, in units of the mean cost; targets go to the mean of the atoms as it
            grows, and to single atoms, or the few that share an image's mass, as it shrinks.

    Returns:
        (G,D), each a convex combination of the atoms.

    Raises:
        ValueError: shapes that do not fit, or masses that are no measure.
        ConvergenceError: the plan did not converge.
    """
    if x0.dim() != 2 or atoms.dim() != 2 or x0.shape[1] != atoms.shape[1] or masses.shape != atoms.shape[:1]:
        shapes = f"x0 {tuple(x0.shape)}, atoms {tuple(atoms.shape)} and masses {tuple(masses.shape)}"
        raise ValueError(f"{shapes} do not fit; expected (G,D), (M,D) and (M,).")
    points, places = _float64(x0), _float64(atoms)
    cost = cdist(points, places, "sqeuclidean")
    cost /= cost.mean() or 1.0
    with one_thread():
        plan = entropic_plan(None, _float64(masses), cost, regularisation, steps=SINKHORN_STEPS, remedy=REMEDY)
        targets = plan @ places / plan.sum(1, keepdims=True)
    return torch.from_numpy(targets).to(x0)


def repulsion(x0: Tensor) -> Tensor:
    """Where each image of a group is pushed by the others, scaled to about the distance of neighbours at most.

        k_ij = exp(-|x0_i - x0_j|^2 / h), h = (median over pairs of |x0_i - x0_j|)^2 / log G
        d_i = -(h / 2) grad_i log sum_j k_ij = sum_j k_ij (x0_i - x0_j) / sum_j k_ij

    A d_i that is longer than r, the root of the mean squared distance to the nearest neighbour, is cut to the length r.
    Equal images do not push each other: no direction leads away.

    Source: particle guidance (Corso et al. 2024, arXiv 2310.13102), with its kernel and median heuristic. Where we
    differ: the paper adds the gradient of a potential of all samples together to the score of the noised samples; here
    the predicted x0 moves, by the gradient of the logarithm of each image's own sum, whose length does not depend on G.

    Args:
        x0: The predicted images of a group, (G,D).

    Returns:
        (G,D), in the unit of x0; 0 for a single image.

    Raises:
        ValueError: another shape.
    """
    if x0.dim() != 2:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; expected (G,D).")
    count, points = len(x0), _float64(x0)
    if count < 2:
        return torch.zeros_like(x0)
    points = points - points.mean(0)
    squared = cdist(points, points, "sqeuclidean")
    tiny = np.finfo(np.float64).tiny
    width = float(np.median(np.sqrt(squared[np.triu_indices(count, 1)]))) ** 2 / math.log(count)
    kernel = np.exp(-squared / max(width, tiny))
    with one_thread():
        direction = points - kernel @ points / kernel.sum(1, keepdims=True)
    nearest = np.where(np.eye(count, dtype=bool), np.inf, squared).min(1)
    length = np.linalg.norm(direction, axis=1, keepdims=True)
    return torch.from_numpy(direction * np.minimum(1, np.sqrt(nearest.mean()) / np.maximum(length, tiny))).to(x0)


def _float64(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.detach().double().cpu().numpy()
    return found
