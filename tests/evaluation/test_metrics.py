"""Set metrics against hand numbers, slow loops and what they must not depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from gendistill.evaluation.set_metrics import centrality, crowding, mmd2, representativeness, vendi
from gendistill.seeding import torch_rng

AXES = torch.eye(3)


def points(count: int, dim: int = 6, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch_rng(seed, "points", count)) + shift


def test_hand_numbers() -> None:
    made = torch.tensor([[1.0, 0, 0], [1.0, 1, 0]])
    assert crowding(made).item() == pytest.approx(0.5**0.5)
    # largest cosines of the axes: 1, 1 / sqrt 2, 0; the median is the middle one
    assert representativeness(AXES, made, quantile=0.5).item() == pytest.approx(0.5**0.5)
    assert centrality(AXES, made).item() == 0


def test_slow_loops() -> None:
    real, made = points(20), points(7, seed=1)
    table = torch.stack([torch.stack([cosine_similarity(r, m, dim=0) for m in made]) for r in real])
    torch.testing.assert_close(representativeness(real, made), table.amax(1).quantile(0.05))
    torch.testing.assert_close(centrality(real, made), table.amin(0).mean())
    own = [max(cosine_similarity(a, b, dim=0).item() for j, b in enumerate(made) if j != i) for i, a in enumerate(made)]
    assert crowding(made).item() == pytest.approx(sum(own) / len(own), abs=1e-6)


def test_mmd_is_the_mean_over_pairs_of_different_images() -> None:
    x, y = points(5).double(), points(4, seed=1).double()

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 6 + 1) ** 3)

    xx = [k(x[i], x[j]) for i in range(5) for j in range(5) if i != j]
    yy = [k(y[i], y[j]) for i in range(4) for j in range(4) if i != j]
    xy = [k(a, b) for a in x for b in y]
    wanted = sum(xx) / len(xx) + sum(yy) / len(yy) - 2 * sum(xy) / len(xy)
    assert mmd2(x, y).item() == pytest.approx(wanted)


def test_mmd_tells_other_distributions_and_is_unbiased() -> None:
    same = torch.stack([mmd2(points(40, seed=i), points(40, seed=100 + i)) for i in range(60)])
    assert same.mean().abs() < 3 * same.std() / 60**0.5
    assert (same < 0).any()
    assert mmd2(points(200), points(200, seed=1, shift=1.0)) > 10 * same.std()


def test_a_cosine_does_not_see_lengths() -> None:
    real, made = points(20), points(7, seed=1)
    assert crowding(3 * made).item() == pytest.approx(crowding(made).item(), abs=1e-6)
    assert representativeness(real, 3 * made).item() == pytest.approx(representativeness(real, made).item(), abs=1e-6)


def test_one_image_has_no_neighbour() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        crowding(AXES[:1])
    with pytest.raises(ValueError, match="at least 2 each"):
        mmd2(AXES, AXES[:1])


def test_vendi_by_hand() -> None:
    assert vendi(AXES).item() == pytest.approx(3)
    assert vendi(AXES[:1].repeat(4, 1)).item() == pytest.approx(1)
    assert vendi(torch.cat([AXES, AXES])).item() == pytest.approx(3)  # seen twice, no more of them
    # cosine 1/2: eigenvalues (1 +- 1/2) / 2
    pair = torch.tensor([[1.0, 0], [0.5, 0.75**0.5]])
    assert vendi(pair).item() == pytest.approx((0.75**-0.75) * (0.25**-0.25))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 1 << 20))
def test_vendi_is_between_one_and_the_number_of_images(count: int, dim: int, seed: int) -> None:
    made = points(count, dim, seed) + 0.1
    found = vendi(made).item()
    assert 1 - 1e-9 <= found <= min(count, dim) + 1e-9
    assert vendi(5 * made).item() == pytest.approx(found)
    full = torch.nn.functional.normalize(made.double(), dim=1)
    values = torch.linalg.eigvalsh(full @ full.T / count).clamp(min=1e-300)
    assert found == pytest.approx(float((-(values * values.log()).sum()).exp()))


def test_no_image_has_no_vendi_score() -> None:
    with pytest.raises(ValueError, match="no image"):
        vendi(AXES[:0])
