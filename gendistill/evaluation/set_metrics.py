"""How like the real images of its classes a set is, class by class, beside random real sets of its size.

Legend: K classes; of a class, pool (N,D) are features of real images and made (M,D) of the set's, M <= N / 2.
A random real set takes M of the pool. Every set, random or not, is compared with N - M of it: without those that it
holds itself, since a real image is no nearer to the others for being real, and, where it holds fewer than M, without
random others, since most measures change with the number of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendistill.evaluate.metrics import crowding, mmd2, representativeness, vendi
from gendistill.evaluate.neighbours import FEWEST, balls
from gendistill.progress import track
from gendistill.seeding import torch_rng

DRAWS = 5  # random real sets
BALLS = ("precision", "recall", "density", "coverage")
FEWEST_MADE = {"kid": 2, **dict.fromkeys(BALLS, FEWEST), "vendi": 1, "representativeness": 1, "crowding": 2}
MEASURES = tuple(FEWEST_MADE)
Values = dict[str, float | None]
ByClass = dict[str, list[float | None]]


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
        found |= vars(balls(real, made))
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
) -> dict[str, dict[str, Any]]:
    """By measure {"mean", "by_class", "random": {"mean", "std", "by_class"}, "reason"}, one tensor a class.

    ``held`` are positions in the pool of images that the set holds; ``random`` are ``random_sets`` of its size. Means
    are over the classes that are measured; std is that of the random sets' means. ``reason`` says why classes are None.
    """
    classes = enumerate(zip(pool, made, held, strict=True))
    own = [measures(_without(real, _left_out(len(real), len(x), at, k, seed)), x) for k, (real, x, at) in classes]
    return {name: _beside(name, _column(own, name), [_column(r, name) for r in random]) for name in MEASURES}


def shares(
    pool: Sequence[Mapping[str, Tensor]], made: Sequence[Mapping[str, Tensor]], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The same for values of single images, by name (N,) and (M,), whose mean over a class is the measure."""
    names = tuple(pool[0])
    own = [{name: _mean(values[name]) for name in names} for values in made]
    random = [
        [
            {name: _mean(real[name][drawn(len(real[name]), len(x[name]), k, d, seed)]) for name in names}
            for k, (real, x) in enumerate(zip(pool, made, strict=True))
        ]
        for d in range(draws)
    ]
    return {name: _beside(name, _column(own, name), [_column(r, name) for r in random]) for name in names}


def drawn(count: int, most: int, label: int, draw: int, seed: int) -> Tensor:
    """Positions of the ``draw``-th random real set in the pool of a class."""
    return torch.randperm(count, generator=torch_rng(seed, "random set", label, draw))[:most]


def _of_draw(real: Tensor, count: int, label: int, draw: int, seed: int) -> Values:
    at = drawn(len(real), count, label, draw, seed)
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


def _beside(name: str, own: list[float | None], random: Sequence[list[float | None]]) -> dict[str, Any]:
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
