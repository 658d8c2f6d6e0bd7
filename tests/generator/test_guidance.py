"""Guidance formulas: identities, limits, epsilon against v, and slow references of what couples a group."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendistill.errors import ConvergenceError
from gendistill.generator import guidance
from gendistill.generator.guidance import (
    acts_at,
    classifier_free,
    guidance_weight,
    move_x0_toward,
    repulsion,
    scale_of_third,
    transport_targets,
)
from gendistill.objectives.diffusion import predicted_x0
from gendistill.seeding import torch_rng

TYPES = ("epsilon", "v_prediction")
alpha_bars = st.floats(1e-3, 0.999)


def draw(seed: int, count: int = 4) -> list[Tensor]:
    return [torch.randn(2, 3, 4, 4, generator=torch_rng(seed, i), dtype=torch.float64) for i in range(count)]


def both(alpha_bar: float) -> Tensor:
    """For two images, the second one less noisy."""
    return torch.tensor([alpha_bar, (1 + alpha_bar) / 2], dtype=torch.float64)


@pytest.mark.parametrize(("level", "acts"), [(0.29, False), (0.3, True), (0.5, True), (0.8, True), (0.81, False)])
def test_the_interval_is_closed(level: float, acts: bool) -> None:
    assert acts_at(level, (0.3, 0.8)) is acts


def test_classifier_free_guidance_extrapolates_from_the_null_prediction() -> None:
    with_class, null = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0])
    assert torch.equal(classifier_free(with_class, null, 1), with_class)
    assert torch.equal(classifier_free(with_class, null, 0), null)
    assert classifier_free(with_class, null, 4).tolist() == [2.5, -4.0]
    assert classifier_free(with_class, null, 0.5).tolist() == [0.75, 3.0]


@pytest.mark.parametrize(
    ("level", "scale"), [(0.0, 7), (0.3333, 7), (0.3334, 5), (0.6666, 5), (0.6667, 3), (0.999, 3), (1.0, 3)]
)
def test_each_third_of_the_noise_levels_has_its_scale(level: float, scale: float) -> None:
    assert scale_of_third(level, (3, 5, 7)) == scale


def test_classifier_free_guidance_can_leave_the_last_channels_to_the_class() -> None:
    with_class, null = torch.randn(2, 3, 4, 4, 4).unbind(0)
    guided = classifier_free(with_class, null, 4, 3)
    torch.testing.assert_close(guided[:, :3], null[:, :3] + 4 * (with_class - null)[:, :3])
    assert torch.equal(guided[:, 3:], with_class[:, 3:])
    assert torch.equal(classifier_free(with_class, null, 4, 4), classifier_free(with_class, null, 4))


@settings(deadline=None)
@given(st.integers(0, 100), alpha_bars, st.floats(0, 20), st.sampled_from(TYPES))
def test_x0_moves_by_its_weight_toward_the_mode(seed: int, alpha_bar: float, scale: float, kind: str) -> None:
    output, xt, mode, _ = draw(seed)
    alpha_bars = both(alpha_bar)
    before = predicted_x0(output, xt, alpha_bars, kind)
    after = predicted_x0(move_x0_toward(output, xt, mode, alpha_bars, scale, kind), xt, alpha_bars, kind)
    weight = guidance_weight(alpha_bars, scale).view(-1, 1, 1, 1)
    assert ((weight >= 0) & (weight <= 1)).all()
    torch.testing.assert_close(after, before + weight * (mode - before))


@settings(deadline=None)
@given(st.integers(0, 100), alpha_bars, st.floats(0, 20))
def test_epsilon_and_v_are_guided_alike(seed: int, alpha_bar: float, scale: float) -> None:
    eps, xt, mode, _ = draw(seed)
    alpha_bars = both(alpha_bar)
    signal, noise = (a.sqrt().view(-1, 1, 1, 1) for a in (alpha_bars, 1 - alpha_bars))
    v = signal * eps - noise * predicted_x0(eps, xt, alpha_bars, "epsilon")
    guided = [
        predicted_x0(move_x0_toward(output, xt, mode, alpha_bars, scale, kind), xt, alpha_bars, kind)
        for output, kind in ((eps, "epsilon"), (v, "v_prediction"))
    ]
    torch.testing.assert_close(guided[0], guided[1], rtol=1e-6, atol=1e-6)


def test_a_moderate_scale_is_the_papers_correction_of_epsilon() -> None:
    eps, xt, mode, _ = draw(0)
    alpha_bars = both(0.6)
    g = mode - predicted_x0(eps, xt, alpha_bars, "epsilon")
    wanted = eps - 0.1 * (1 - alpha_bars).sqrt().view(-1, 1, 1, 1) * g
    torch.testing.assert_close(move_x0_toward(eps, xt, mode, alpha_bars, 0.1, "epsilon"), wanted)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("alpha_bar", [2.4e-9, 4e-5, 0.5, 0.999])
def test_scale_zero_changes_nothing_and_a_large_one_predicts_the_mode(kind: str, alpha_bar: float) -> None:
    output, xt, mode, _ = (x.float() for x in draw(1))
    alpha_bars = torch.full((2,), alpha_bar)
    assert torch.equal(move_x0_toward(output, xt, mode, alpha_bars, 0.0, kind), output)
    guided = move_x0_toward(output, xt, mode, alpha_bars, 1e9, kind)
    if kind == "epsilon":  # whose x0 cannot be read back in fp32
        noise, signal = (1 - alpha_bars[0]).sqrt(), alpha_bars[0].sqrt()
        torch.testing.assert_close(guided, (xt - signal * mode) / noise, rtol=1e-3, atol=1e-4)
    else:
        torch.testing.assert_close(predicted_x0(guided, xt, alpha_bars, kind), mode, rtol=1e-4, atol=1e-5)


def test_pure_noise_is_guided_without_infinities() -> None:
    output, xt, mode, _ = draw(2)
    for scale in (0.0, 0.1):
        assert move_x0_toward(output, xt, mode, torch.zeros(2).double(), scale, "v_prediction").isfinite().all()


def test_shapes_that_would_broadcast_are_refused() -> None:
    output, xt, mode, _ = draw(3)
    with pytest.raises(ValueError, match="must agree"):
        move_x0_toward(output, xt, mode[:1], both(0.5), 0.1, "epsilon")


# Transport of a group to the atoms of its class.


def group(seed: int, count: int, atoms: int, dimensions: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """x0 (G,D), atoms (M,D) and masses (M,) of any sum."""
    rng = torch_rng(seed, "group")
    x0, places = (torch.randn(n, dimensions, generator=rng, dtype=torch.float64) for n in (count, atoms))
    return x0, places, torch.rand(atoms, generator=rng, dtype=torch.float64) + 0.1


def normalised_cost(x0: Tensor, atoms: Tensor) -> np.ndarray:
    cost = np.array([[float(((x - atom) ** 2).sum()) for atom in atoms] for x in x0])
    return cost / cost.mean()


def slow_targets(x0: Tensor, atoms: Tensor, masses: Tensor, regularisation: float) -> np.ndarray:
    """Sinkhorn's iterations in the log domain, in loops."""
    cost, b = normalised_cost(x0, atoms), (masses / masses.sum()).numpy()
    f, g = np.zeros(len(x0)), np.zeros(len(atoms))
    for _ in range(3000):
        for i in range(len(x0)):
            f[i] = -np.log(len(x0)) - np.logaddexp.reduce(g - cost[i] / regularisation)
        for m in range(len(atoms)):
            g[m] = np.log(b[m]) - np.logaddexp.reduce(f - cost[:, m] / regularisation)
    targets = np.zeros(x0.shape)
    for i in range(len(x0)):
        row = np.exp(f[i] + g - cost[i] / regularisation)
        targets[i] = sum(row[m] * atoms[m].numpy() for m in range(len(atoms))) / row.sum()
    return targets


@pytest.mark.parametrize(("count", "atoms", "regularisation"), [(3, 4, 0.05), (4, 3, 0.5), (2, 6, 0.1)])
def test_targets_are_those_of_slow_sinkhorn_iterations(count: int, atoms: int, regularisation: float) -> None:
    given_ = group(count, count, atoms)
    found = transport_targets(*given_, regularisation)
    np.testing.assert_allclose(found.numpy(), slow_targets(*given_, regularisation), atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 12), st.sampled_from([0.05, 0.3, 5.0]))
def test_targets_are_those_of_pots_plan_and_convex_combinations(
    seed: int, count: int, atoms: int, regularisation: float
) -> None:
    x0, places, masses = group(seed, count, atoms)
    found = transport_targets(x0, places, masses, regularisation)
    a, b = np.full(count, 1 / count), (masses / masses.sum()).numpy()
    plan = ot.sinkhorn(
        a, b, normalised_cost(x0, places), regularisation, method="sinkhorn_log", numItermax=20_000, warn=False
    )
    np.testing.assert_allclose(found.numpy(), plan @ places.numpy() / plan.sum(1, keepdims=True), atol=1e-3)
    low, high = places.min(0).values, places.max(0).values
    assert ((found >= low - 1e-9) & (found <= high + 1e-9)).all()
    # the plan's masses are those asked for, so the targets together have the mean of the class
    torch.testing.assert_close(found.mean(0), (masses / masses.sum()) @ places, rtol=0, atol=1e-2)


@pytest.mark.parametrize("shift", [0.0, 3.0, 100.0])
def test_targets_move_and_scale_with_images_and_atoms(shift: float) -> None:
    x0, atoms, masses = group(0, 5, 7)
    found = transport_targets(x0, atoms, masses, 0.05)
    moved = transport_targets(2 * x0 + shift, 2 * atoms + shift, 9 * masses, 0.05)
    torch.testing.assert_close(moved, 2 * found + shift, rtol=0, atol=1e-6)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(transport_targets(x0[order], atoms, masses, 0.05), found[order], rtol=0, atol=1e-6)


def test_the_group_covers_the_atoms_by_mass_where_every_image_is_nearest_to_one() -> None:
    atoms = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    x0 = torch.tensor([[0.0, 0.0], [0.1, 1.0], [0.0, 2.0], [1.0, 0.0]])
    targets = transport_targets(x0, atoms, torch.tensor([3.0, 1.0]), 0.01)
    torch.testing.assert_close(targets, atoms[[0, 0, 0, 1]], rtol=0, atol=1e-3)


def test_much_regularisation_sends_all_to_the_mean_of_the_class() -> None:
    x0, atoms, masses = group(1, 4, 6)
    mean = (masses / masses.sum()) @ atoms
    torch.testing.assert_close(transport_targets(x0, atoms, masses, 100), mean.expand(4, -1), rtol=0, atol=0.02)


def test_images_that_are_the_atoms_and_a_single_atom_have_plain_targets() -> None:
    point = torch.ones(1, 3)
    assert torch.equal(transport_targets(point, point, torch.ones(1), 0.05), point)
    assert torch.equal(transport_targets(point.expand(4, 3), 2 * point, torch.ones(1), 0.05), 2 * point.expand(4, 3))
    atoms = 5 * torch.eye(4)
    torch.testing.assert_close(transport_targets(atoms, atoms, torch.ones(4), 0.01), atoms)


def test_targets_of_shapes_that_do_not_fit_and_of_nan_are_refused() -> None:
    x0, atoms, masses = group(0, 3, 4)
    for wrong in ((x0[0], atoms, masses), (x0[:, :2], atoms, masses), (x0, atoms, masses[:2])):
        with pytest.raises(ValueError, match=r"expected \(G,D\), \(M,D\) and \(M,\)"):
            transport_targets(*wrong, 0.05)
    with pytest.raises(ConvergenceError, match="infinite or NaN"):
        transport_targets(torch.full_like(x0, torch.nan), atoms, masses, 0.05)


def test_a_plan_that_does_not_converge_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "SINKHORN_STEPS", 1)
    with pytest.raises(ConvergenceError, match="--transport_regularisation"):
        transport_targets(*group(0, 3, 4), 1e-4)


# Repulsion in a group.


def slow_repulsion(x0: Tensor) -> Tensor:
    """By automatic differentiation and loops."""
    count = len(x0)
    pairs = [float((x0[i] - x0[j]).norm()) for i in range(count) for j in range(i)]
    width = np.median(pairs) ** 2 / np.log(count)
    found = torch.zeros_like(x0)
    for i in range(count):
        one = x0[i].clone().requires_grad_()
        others = [x0[j] if j != i else x0[i] for j in range(count)]
        torch.stack([torch.exp(-((one - other) ** 2).sum() / width) for other in others]).sum().log().backward()
        found[i] = -width / 2 * one.grad
    nearest = [min(float(((x0[i] - x0[j]) ** 2).sum()) for j in range(count) if j != i) for i in range(count)]
    longest = np.mean(nearest) ** 0.5
    for i in range(count):
        found[i] *= min(1.0, longest / float(found[i].norm()))
    return found


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("dimensions", [1, 2, 40])
def test_repulsion_is_the_gradient_of_the_kernels_by_automatic_differentiation(count: int, dimensions: int) -> None:
    x0, _, _ = group(count, count, 1, dimensions)
    torch.testing.assert_close(repulsion(x0), slow_repulsion(x0), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 12), st.floats(-100, 100), st.floats(0.01, 100))
def test_repulsion_ignores_place_and_order_and_scales(seed: int, count: int, shift: float, scale: float) -> None:
    x0, _, _ = group(seed, count, 1)
    found, order = repulsion(x0), torch.randperm(count, generator=torch_rng(seed))
    torch.testing.assert_close(repulsion(scale * x0 + shift), scale * found, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(repulsion(x0[order]), found[order])
    distances = torch.cdist(x0, x0) + torch.eye(count) * 1e9
    assert found.norm(dim=1).max() <= distances.min(1).values.square().mean().sqrt() * (1 + 1e-9)


def test_symmetric_images_are_pushed_outward_alike() -> None:
    corners = torch.eye(4, dtype=torch.float64)
    outward = corners - corners.mean(0)
    found = repulsion(corners)
    ratio = found.norm() / outward.norm()
    assert 0.1 < ratio < 1
    torch.testing.assert_close(found, ratio * outward)


def test_equal_images_are_not_pushed_and_make_no_nan() -> None:
    assert torch.equal(repulsion(torch.ones(5, 3)), torch.zeros(5, 3))
    assert torch.equal(repulsion(torch.ones(1, 3)), torch.zeros(1, 3))
    two = repulsion(torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
    assert two.isfinite().all()
    assert torch.equal(two[0], two[1])
    assert two[0, 0] < 0 < two[2, 0]
    assert repulsion(torch.tensor([[0.0], [0.0], [0.0], [1.0]])).isfinite().all()  # the median is 0
    with pytest.raises(ValueError, match=r"expected \(G,D\)"):
        repulsion(torch.ones(2, 3, 4))
