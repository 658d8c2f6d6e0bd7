"""Sets beside random real ones: random is like random, and what differs is seen to differ."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from gendistill.evaluation.set_metrics import (
    MEASURES,
    likeness,
    measures,
    mmd2,
    random_positions,
    random_sets,
    shares,
    vendi,
)
from gendistill.seeding import torch_rng

NONE = torch.tensor([], dtype=torch.int64)


def points(count: int, seed: int, scale: float = 1.0, shift: float = 1.0) -> Tensor:
    return scale * torch.randn(count, 5, generator=torch_rng(seed, "like", count)) + shift


def beside(pool: list[Tensor], made: list[Tensor], held: list[Tensor], draws: int = 5) -> dict[str, dict[str, Any]]:
    return likeness(pool, made, held, random_sets(pool, [len(x) for x in made], draws=draws))


def test_every_number_stands_beside_that_of_random_sets_of_its_size() -> None:
    pool = [points(60, 0), points(60, 1)]
    made = [points(20, 2), points(10, 3)]
    found = beside(pool, made, [NONE, NONE], draws=4)
    assert set(found) == set(MEASURES)
    vendis = [
        [
            vendi(real[random_positions(60, len(x), k, d, 0)]).item()
            for k, (real, x) in enumerate(zip(pool, made, strict=True))
        ]
        for d in range(4)
    ]
    means = torch.tensor(vendis).mean(1)
    assert found["vendi"]["by_class"] == pytest.approx([vendi(x).item() for x in made])
    assert found["vendi"]["random"]["mean"] == pytest.approx(means.mean().item())
    assert found["vendi"]["random"]["std"] == pytest.approx(means.std().item())
    assert found["vendi"]["random"]["by_class"] == pytest.approx(torch.tensor(vendis).mean(0).tolist())
    assert json.loads(json.dumps(found)) == found


def test_a_real_subset_is_within_what_random_ones_are() -> None:
    pool = [points(200, k) for k in range(3)]
    taken = [torch.arange(30) for _ in pool]
    found = beside(pool, [p[:30] for p in pool], taken, draws=8)
    for name, value in found.items():
        random = value["random"]
        assert abs(value["mean"] - random["mean"]) < 4 * random["std"], name


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 30, 60])
def test_fresh_samples_of_the_real_distribution_are_within_what_random_ones_are(count: int) -> None:
    """As many real images stand beside a set that holds none of them as beside a random one, whatever its size."""
    pool = [points(121, k) for k in range(20)]
    made = [torch.randn(count, 5, generator=torch_rng(k, "fresh")) + 1 for k in range(20)]
    found = beside(pool, made, [NONE] * 20, draws=20)
    for name, value in found.items():
        assert abs(value["mean"] - value["random"]["mean"]) < 4 * value["random"]["std"], name


def test_images_that_the_set_holds_are_left_out_of_what_it_is_compared_with() -> None:
    pool = points(50, 0)
    found = beside([pool], [pool[:20]], [torch.arange(20)], draws=2)
    assert found["kid"]["mean"] == pytest.approx(mmd2(pool[20:], pool[:20]).item())
    assert found["precision"]["mean"] == pytest.approx(measures(pool[20:], pool[:20])["precision"])


def test_a_set_of_one_point_is_precise_and_alike_and_covers_little() -> None:
    pool = [points(200, 0)]
    found = beside(pool, [points(20, 1, scale=0.01)], [NONE])
    assert found["precision"]["mean"] >= found["precision"]["random"]["mean"]
    for name, sign in (("crowding", 1), ("kid", 1), ("vendi", -1), ("recall", -1), ("coverage", -1)):
        value = found[name]
        assert sign * (value["mean"] - value["random"]["mean"]) > 2 * value["random"]["std"], name


def test_few_images_leave_gaps_with_a_reason() -> None:
    found = beside([points(40, 0), points(40, 1)], [points(8, 2), points(6, 3)], [NONE, NONE])
    assert found["density"]["by_class"][1] is None
    assert found["density"]["mean"] == found["density"]["by_class"][0]
    assert (
        found["density"]["reason"]
        == "density needs at least 7 images a class beside as many real ones; 1 of 2 classes had fewer"
    )
    assert found["kid"]["reason"] is None
    one = beside([points(40, 0)], [points(1, 2)], [NONE])
    assert one["kid"]["mean"] is None
    assert one["kid"]["random"] == {"mean": None, "std": None, "by_class": [None]}
    assert one["vendi"]["mean"] == pytest.approx(1)
    none = beside([points(40, 0)], [points(0, 2)], [NONE])
    assert all(value["mean"] is None for value in none.values())


def test_values_of_single_images_are_averaged_by_class() -> None:
    pool = [{"agreement": torch.ones(9)}, {"agreement": torch.zeros(9)}]
    found = shares(pool, [{"agreement": torch.tensor([1.0, 0])}, {"agreement": torch.tensor([])}])["agreement"]
    assert found["by_class"] == [0.5, None]
    assert found["mean"] == 0.5
    assert found["random"]["by_class"] == [1, None]
