"""What a surrogate set is like beside real images: the minimax criteria mirrored, kernel MMD and the Vendi score.

Legend: real (N,D) and made (M,D) are features, or flattened pixels, of ONE class; compare sets of equal size M.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def representativeness(real: Tensor, made: Tensor, quantile: float = 0.05) -> Tensor:
    """5th percentile over the real images of their largest cosine to a surrogate image, in [-1, 1]; higher is better.

    Low where some real images have nothing like them in the set, as the minimax criterion sees them.
    """
    return _cosine(real, made).amax(1).quantile(quantile)


def centrality(real: Tensor, made: Tensor) -> Tensor:
    """Mean over the surrogate images of their SMALLEST cosine to a real image, in [-1, 1].

    What the representativeness criterion raises (2311.15529, eq. 5): images near every real one, so near their middle.
    """
    return _cosine(made, real).amin(1).mean()


def crowding(made: Tensor) -> Tensor:
    """Mean over the surrogate images of their largest cosine to ANOTHER one, in [-1, 1]; lower is more diverse.

    Raises:
        ValueError: fewer than two images.
    """
    if len(made) < 2:
        raise ValueError(f"made has {len(made)} image(s); expected at least 2.")
    cosine = _cosine(made, made)
    return cosine.fill_diagonal_(-torch.inf).amax(1).mean()


def vendi(made: Tensor) -> Tensor:
    """exp(-sum_i l_i log l_i) for the eigenvalues l of the cosines / M: how many different images the set counts as.

    From 1 (all alike) to M (all at right angles). Friedman & Dieng 2022 (arXiv 2210.02410), definition 3.1.

    Raises:
        ValueError: no image.
    """
    if not len(made):
        raise ValueError("made has no image; expected at least 1.")
    points = F.normalize(made.double(), dim=1)
    small = points.T @ points if points.shape[1] < len(points) else points @ points.T  # the same eigenvalues but zeros
    values = torch.linalg.eigvalsh(small / len(points)).clamp(min=0)
    return torch.special.entr(values).sum().exp()


def mmd2(real: Tensor, made: Tensor) -> Tensor:
    """Unbiased squared MMD with the cubic kernel (x.y / D + 1)^3 of KID (Binkowski et al. 2018, eq. 3 and section 4).

    About 0 for samples of one distribution, and below it by chance.

    Raises:
        ValueError: fewer than two images on a side.
    """
    if min(len(real), len(made)) < 2:
        raise ValueError(f"real has {len(real)} and made {len(made)} image(s); expected at least 2 each.")
    x, y = real.double(), made.double()
    return _mean_off_diagonal(_cubic(x, x)) + _mean_off_diagonal(_cubic(y, y)) - 2 * _cubic(x, y).mean()


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=1) @ F.normalize(y.float(), dim=1).T


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))
