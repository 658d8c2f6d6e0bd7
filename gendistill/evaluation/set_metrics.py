"""How like the real images of its classes a set is, class by class, beside random real sets of its size.

Legend: K classes; of a class, pool (N,D) are features of real images and made (M,D) of the set's, M <= N / 2.
A random real set takes M of the pool. Every set, random or not, is compared with N - M of it: without those that it
holds itself, since a real image is no nearer to the others for being real, and, where it holds fewer than M, without
random others, since most measures change with the number of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.evaluation.summary import Measure
from gendistill.progress import track
from gendistill.seeding import torch_rng


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


def batch_mmd(features: Tensor, batch: Tensor) -> Tensor:
    """MMD between a class's ``features`` (n,d) and those of a batch of it (m,d), both taken as whole distributions.

    The kernel is (|x| + |y| - |x - y|) / 2, whose squared MMD is half the energy distance (Sejdinovic et al. 2013): it
    needs no bandwidth. Biased: 0 for the class itself alone; a random batch's falls as the root of 1/m - 1/n.
    """
    x, y = features.double(), batch.double()
    squared = torch.cdist(x, y).mean() - (torch.cdist(x, x).mean() + torch.cdist(y, y).mean()) / 2
    return squared.clamp(min=0).sqrt()


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=1) @ F.normalize(y.float(), dim=1).T


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


NEIGHBOURS = 5
FEWEST = NEIGHBOURS + 2  # images on each side: with k + 1 every ball would contain all of its side


@dataclass(frozen=True)
class PRDC:
    """Precision, recall, density and coverage of one class.

    Attributes:
        precision: Share of surrogate images inside some real ball (Kynkaanniemi et al. 2019, eq. 2).
        recall: Share of real images inside some surrogate ball (the same, with the sides changed).
        density: Mean number of real balls around a surrogate image, divided by k; about 1, and not bounded by it
            (Naeem et al. 2020, eq. 3).
        coverage: Share of real balls with a surrogate image inside (the same, eq. 4).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> PRDC:
    """Precision, recall, density and coverage; a ball reaches from an image to its k-th nearest neighbour.

    Raises:
        ValueError: fewer than k + 2 images on a side.
    """
    if min(len(real), len(made)) < k + 2:
        raise ValueError(f"real has {len(real)} and made {len(made)} image(s); expected at least {k + 2} each.")
    between = _distances(real, made)
    in_real = between <= _radii(real, k)[:, None]  # (N,M)
    in_made = between <= _radii(made, k)
    return PRDC(
        precision=in_real.any(0).float().mean().item(),
        recall=in_made.any(1).float().mean().item(),
        density=in_real.sum(0).float().mean().item() / k,
        coverage=in_real.any(1).float().mean().item(),
    )


def _radii(points: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest neighbour, (N,)."""
    own = _distances(points, points).fill_diagonal_(-1)  # itself comes first, whatever the rounding
    return own.kthvalue(k + 1, dim=1).values


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x.double(), y.double())


DRAWS = 5  # random real sets
PRDC_NAMES = ("precision", "recall", "density", "coverage")
FEWEST_MADE = {"kid": 2, **dict.fromkeys(PRDC_NAMES, FEWEST), "vendi": 1, "representativeness": 1, "crowding": 2}
MEASURES = tuple(FEWEST_MADE)
Values = dict[str, float | None]


def measures(real: Tensor, made: Tensor) -> Values:
    """Every measure of one class, or None where a side has too few images for it."""
    found: Values = dict.fromkeys(MEASURES)
    if len(made):
        found["vendi"] = vendi(made).item()
    if len(made) >= 2:
        found["crowding"] = crowding(made).item()
    if len(made) and len(real):
        found["representativeness"] = representativeness(real, made).item()
    if min(len(made), len(real)) >= 2:
        found["kid"] = mmd2(real, made).item()
    if min(len(made), len(real)) >= FEWEST:
        found |= vars(prdc(real, made))
    return found


def random_sets(
    pool: Sequence[Tensor], counts: Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> list[list[Values]]:
    """By draw and class, the measures of random real sets with so many images of each class."""
    return [
        [_of_draw(real, n, k, d, seed) for k, (real, n) in enumerate(zip(pool, counts, strict=True))]
        for d in track(range(draws), "random real sets", draws)
    ]


def likeness(
    pool: Sequence[Tensor],
    made: Sequence[Tensor],
    held: Sequence[Tensor],
    random: Sequence[Sequence[Values]],
    *,
    seed: int = 0,
) -> dict[str, Measure]:
    """By measure {"mean", "by_class", "random": {"mean", "std", "by_class"}, "reason"}, one tensor a class.

    ``held`` are positions in the pool of images that the set holds; ``random`` are ``random_sets`` of its size. Means
    are over the classes that are measured; std is that of the random sets' means. ``reason`` says why classes are None.
    """
    classes = enumerate(zip(pool, made, held, strict=True))
    own = [measures(_without(real, _left_out(len(real), len(x), at, k, seed)), x) for k, (real, x, at) in classes]
    return {name: _beside(name, _column(own, name), [_column(r, name) for r in random]) for name in MEASURES}


def shares(
    pool: Sequence[Mapping[str, Tensor]], made: Sequence[Mapping[str, Tensor]], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Measure]:
    """The same for values of single images, by name (N,) and (M,), whose mean over a class is the measure."""
    names = tuple(pool[0])
    own = [{name: _mean(values[name]) for name in names} for values in made]
    random = [
        [
            {name: _mean(real[name][random_positions(len(real[name]), len(x[name]), k, d, seed)]) for name in names}
            for k, (real, x) in enumerate(zip(pool, made, strict=True))
        ]
        for d in range(draws)
    ]
    return {name: _beside(name, _column(own, name), [_column(r, name) for r in random]) for name in names}


def random_positions(count: int, most: int, label: int, draw: int, seed: int) -> Tensor:
    """Positions of the ``draw``-th random real set in the pool of a class."""
    return torch.randperm(count, generator=torch_rng(seed, "random set", label, draw))[:most]


def _of_draw(real: Tensor, count: int, label: int, draw: int, seed: int) -> Values:
    at = random_positions(len(real), count, label, draw, seed)
    return measures(_without(real, at), real[at])


def _left_out(total: int, count: int, held: Tensor, label: int, seed: int) -> Tensor:
    """``count`` positions in the pool of a class, those that are ``held`` among them."""
    order = torch.randperm(total, generator=torch_rng(seed, "left out", label))
    others = order[~torch.isin(order, held)]
    return torch.cat([held, others[: max(0, count - len(held))]])


def _without(points: Tensor, at: Tensor) -> Tensor:
    kept = torch.ones(len(points), dtype=torch.bool)
    kept[at] = False
    return points[kept]


def _mean(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None


def _column(values: Sequence[Values], name: str) -> list[float | None]:
    return [v[name] for v in values]


def _beside(name: str, own: list[float | None], random: Sequence[list[float | None]]) -> Measure:
    means = [m for m in map(_average, random) if m is not None]
    by_class = [_average([r[k] for r in random]) for k in range(len(own))]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return {
        "mean": _average(own),
        "by_class": own,
        "random": {"mean": _average(means), "std": spread, "by_class": by_class},
        "reason": _reason(name, own),
    }


def _average(values: Sequence[float | None]) -> float | None:
    found = [v for v in values if v is not None]
    return float(np.mean(found)) if found else None


def _reason(name: str, own: list[float | None]) -> str | None:
    missing = own.count(None)
    if not missing:
        return None
    fewest = FEWEST_MADE.get(name, 1)
    which = "every class" if missing == len(own) else f"{missing} of {len(own)} classes"
    return (
        f"{name} needs at least {fewest} image{'s' * (fewest > 1)} a class beside as many real ones; {which} had fewer"
    )
