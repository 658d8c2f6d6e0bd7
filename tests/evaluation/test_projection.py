"""The plane of real and surrogate images: PCA of the real ones alone, t-SNE of all, and how it is drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendistill.data.dataset import RealData
from gendistill.evaluation.projection import (
    MOST_POINTS,
    Cloud,
    Projection,
    pixels,
    principal_axes,
    project,
    project_sets,
)
from gendistill.report.charts import FEW, OTHERS, scatter
from gendistill.report.formatting import CLASSES, PALETTE
from gendistill.report.show import render_projection

SVG = "{http://www.w3.org/2000/svg}"


def points(count: int, size: int, seed: int = 0) -> Tensor:
    scale = torch.linspace(3, 1, size)
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) * scale


def projection_of(classes: int, sets: int = 1, each: int = 3) -> Projection:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(each)
    clouds = [Cloud(torch.randn(len(labels), 2, generator=rng), labels, len(labels)) for _ in range(sets + 1)]
    names = tuple(f"class <{i}> & co" for i in range(classes))
    made = {f"set <{i}>": cloud for i, cloud in enumerate(clouds[1:])}
    return Projection("pca", "pixels", names, clouds[0], made, (0.4, 0.3))


@pytest.mark.parametrize(("count", "size"), [(40, 7), (7, 40), (12, 12)])
def test_pca_is_that_of_the_singular_vectors(count: int, size: int) -> None:
    real = points(count, size)
    found = project(real, [])
    centred = (real - real.mean(0)).double().numpy()
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.real.numpy()), np.abs(u[:, :2] * s[:2]), atol=1e-5)
    assert found.explained == pytest.approx(tuple(s[:2] ** 2 / (s**2).sum()))


def test_points_of_a_plane_keep_their_distances_and_all_their_variance() -> None:
    plane = points(30, 2)
    lifted = plane @ torch.linalg.qr(points(9, 2, seed=1)).Q.T + 5
    found = project(lifted, [lifted[:4]])
    before, after = (torch.cdist(x.double(), x.double()) for x in (plane, found.real))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    assert sum(found.explained or ()) == pytest.approx(1)
    assert (found.explained or (0, 0))[0] >= 0.5


def test_a_set_cannot_bend_the_axes() -> None:
    real, far = points(50, 6), 1e4 * points(20, 6, seed=2)
    alone, beside = project(real, []), project(real, [far, real[5:9]], seed=3)
    assert torch.equal(alone.real, beside.real)
    assert alone.explained == beside.explained
    torch.testing.assert_close(beside.sets[1], alone.real[5:9])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1 << 20))
def test_pca_brings_no_two_points_farther_apart(count: int, size: int, seed: int) -> None:
    real, made = points(count, size, seed), points(4, size, seed + 1)
    found = project(real, [made])
    before = torch.cdist(torch.cat([real, made]).double(), torch.cat([real, made]).double())
    after = torch.cdist(torch.cat([found.real, *found.sets]), torch.cat([found.real, *found.sets]))
    assert found.real.shape == (count, 2)
    assert (after <= before + 1e-4).all()


def test_images_all_alike_are_at_one_point() -> None:
    for method in ("pca", "tsne"):
        found = project(torch.ones(8, 5), [torch.ones(2, 5)], method=method)
        assert not torch.cat([found.real, *found.sets]).any()
    assert project(torch.ones(8, 5), []).explained == (0.0, 0.0)
    _, axes, _ = principal_axes(torch.arange(6.0)[:, None])
    assert axes.tolist() == [[1.0, 0.0]]


def test_tsne_keeps_groups_together_and_repeats() -> None:
    centres = torch.tensor([[0.0, 0, 0, 0], [30, 0, 0, 0], [0, 30, 0, 0]])
    labels = torch.arange(3).repeat_interleave(20)
    real, made = centres[labels] + points(60, 4), centres + points(3, 4, seed=5)
    found = project(real, [made], method="tsne", seed=1)
    assert found.explained is None
    closest = torch.cdist(found.sets[0], found.real).argmin(1)
    assert labels[closest].tolist() == [0, 1, 2]
    again = project(real, [made], method="tsne", seed=1)
    assert torch.equal(found.real, again.real)
    assert torch.isfinite(project(real[:2], [made[:1]], method="tsne").real).all()


def test_as_many_real_images_of_every_class_are_drawn(digits: RealData) -> None:
    many = replace(digits, train=digits.train.take(torch.arange(len(digits.train)).repeat(3)))
    made = digits.test.take(torch.arange(30))
    found = project_sets(many, {"test": made}, pixels, space="pixels")
    counts = torch.bincount(found.real.labels)
    assert (len(found.real.points), found.real.total) == (MOST_POINTS, len(many.train))
    assert counts.tolist() == [MOST_POINTS // 10] * 10
    assert torch.equal(found.sets["test"].labels, made.labels)
    again = project_sets(many, {"test": made}, pixels, space="pixels", seed=9)
    assert torch.equal(found.real.points, again.real.points)
    assert 0.2 < sum(found.explained or ()) < 0.5
    assert found.summary()["points"] == {"test": 30}


def test_large_images_are_reduced_before_their_pixels_are_compared() -> None:
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    assert pixels(images).shape == (2, 3 * 64 * 64)
    assert pixels(images[..., :8, :8]).shape == (2, 3 * 64)


@pytest.mark.parametrize("classes", [2, 10, 11, 1000])
def test_drawing_stays_in_its_frame_and_loads_nothing(classes: int) -> None:
    projection = projection_of(classes, sets=3)
    plot, text = scatter(projection), render_projection(projection)
    root = ET.fromstring(text)
    assert text.count("http") == 1  # the name of SVG itself
    paths = root.findall(f".//{SVG}path")
    dots = [tuple(map(int, dot.split("h")[0].split())) for path in paths for dot in path.get("d", "").split("M")[1:]]
    assert all(0 < x < plot.width and 0 < y < plot.height for x, y in dots)
    coloured = classes if classes <= 10 else FEW
    assert [name for name, *_ in plot.legend][-1] == (OTHERS if classes > 10 else f"class <{classes - 1}> & co")
    assert len({colour for _, colour, *_ in plot.legend}) == len(plot.legend) == coloured + (classes > 10)
    assert len(plot.panels) == 3
    assert all(sum(d.path.count("M") for d in panel.dots) == 3 * classes for panel in plot.panels)
    width, height = plot.sheet
    assert all(0 <= x < width and 0 < y <= height for *_, x, y in plot.legend)
    assert ("8 of the 1,000 classes are in colour." in plot.caption) == (classes == 1000)


def test_caption_says_what_the_axes_are_worth() -> None:
    assert "they hold 40.0 % and 30.0 % of the variance" in scatter(projection_of(3)).caption
    said = scatter(replace(projection_of(3), method="tsne", explained=None)).caption
    assert said.startswith("Faint: 9 of the 9 training images.")
    assert "t-SNE" in said
    assert "mean nothing" in said


def test_one_unit_is_as_long_on_both_axes() -> None:
    square = Cloud(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 0]), 3)
    drawn = scatter(Projection("pca", "pixels", ("a",), square, {"set": square}, (0.9, 0.1))).real[0].path
    (x0, y0), (x1, _), (_, y2) = (tuple(map(int, dot.split("h")[0].split())) for dot in drawn.split("M")[1:])
    assert (x1 - x0) == pytest.approx(10 * (y0 - y2), abs=10)
    assert y2 < y0


def test_every_colour_is_one_of_the_palette_on_every_medium() -> None:
    assert set(CLASSES) <= set(PALETTE)
    assert all(len(inks) == 3 and all(len(ink) == 7 for ink in inks) for inks in PALETTE.values())
