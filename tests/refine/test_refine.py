"""Selection and refinement: what they promise, on digits with a quickly trained teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gendistill.config import RefineConfig, TeacherConfig
from gendistill.data.images import to_float
from gendistill.data.real import RealData
from gendistill.errors import ArtifactError, ConfigError
from gendistill.networks.statistics import collect_statistics
from gendistill.networks.teacher import Teacher
from gendistill.progress import finish
from gendistill.refine.barycenter import matched_atoms, mean_w2
from gendistill.refine.select import select
from gendistill.refine.space import GroundSpace, embed_set
from gendistill.stages.distill import distill
from gendistill.stages.refine import refine_set
from gendistill.stages.teacher import train_teacher
from gendistill.surrogate.surrogate import SurrogateSet

CONFIG = RefineConfig(steps=40)


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(width=16, steps=120))


@pytest.fixture(scope="module")
def pool(digits: RealData) -> SurrogateSet:
    return distill(digits, "random", 20, seed=5)


@pytest.fixture(scope="module")
def space(digits: RealData, teacher: Teacher) -> GroundSpace:
    return GroundSpace.build(teacher.statistics, digits.train, pixel_weight=3.0)


def test_ground_space_gives_both_parts_their_weight(digits: RealData, teacher: Teacher, space: GroundSpace) -> None:
    for label in range(10):
        points = torch.from_numpy(space.of_class(label))
        assert points.var(0, unbiased=False).sum().item() == pytest.approx(1 + 3, rel=1e-4)
    alone = GroundSpace.build(teacher.statistics, digits.train, pixel_weight=0.0)
    assert alone.real.shape[1] == teacher.statistics.features.shape[1]


def test_selection_takes_distinct_pool_images_nearer_than_the_first(
    teacher: Teacher, pool: SurrogateSet, space: GroundSpace
) -> None:
    chosen = finish(select(pool, teacher.network, space, ipc=5))
    first = pool.prefix(5)
    assert chosen.ipc == 5
    rows = {(int(y), x.numpy().tobytes()) for x, y in zip(pool.images, pool.labels, strict=True)}
    picked = [(int(y), x.numpy().tobytes()) for x, y in zip(chosen.images, chosen.labels, strict=True)]
    assert set(picked) <= rows
    w2 = [mean_w2(s, embed_set(teacher.network, space, s.images, s.labels), space) for s in (chosen, first)]
    assert w2[0] < w2[1]


def test_refinement_lowers_w2_and_keeps_the_trust_region(
    digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    config = replace(CONFIG, trust_region=0.2)
    selected, refined = refine_set(pool, teacher, digits, 3, config)
    moved = (to_float(refined.images) - to_float(selected.images)).abs().max().item()
    assert 0 < moved <= 0.2 + 1 / 127.5
    assert refined.meta["w2"]["after"] < refined.meta["w2"]["before"]
    assert torch.equal(refined.labels, selected.labels)


def test_refinement_is_deterministic_and_depends_on_every_weight(
    digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    def images(**changes: float) -> torch.Tensor:
        return refine_set(pool, teacher, digits, 2, replace(CONFIG, **changes))[1].images

    reference = images()
    assert torch.equal(images(), reference)
    for name in ("feature_weight", "batch_norm_weight", "cross_entropy_weight", "pixel_weight"):
        assert not torch.equal(images(**{name: 0.0}), reference), name


def test_zero_steps_return_the_selection(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    selected, refined = refine_set(pool, teacher, digits, 2, replace(CONFIG, steps=0))
    assert torch.equal(selected.images, refined.images)


def test_atoms_belong_to_their_own_images(teacher: Teacher, digits: RealData, space: GroundSpace) -> None:
    """Real images as start: no image is nearer to another's atom by so much that swapping the two would pay."""
    chosen = distill(digits, "kmeans", 4, seed=0)
    points = embed_set(teacher.network, space, chosen.images, chosen.labels)
    atoms = matched_atoms(chosen, points, space)
    for label in range(10):
        members = chosen.labels == label
        cost = torch.cdist(points[members], atoms[members]).square()
        own = cost.diagonal().sum()
        for i in range(4):
            for j in range(i):
                swapped = own - cost[i, i] - cost[j, j] + cost[i, j] + cost[j, i]
                assert swapped >= own - 1e-3


def test_misclassified_images_are_left_out_while_enough_remain(
    teacher: Teacher, pool: SurrogateSet, space: GroundSpace
) -> None:
    spoiled = pool.images.clone()
    zeros = torch.nonzero(pool.labels == 0).flatten()
    spoiled[zeros[:10]] = pool.images[pool.labels == 1][:10]  # ones under the label 0
    chosen = finish(select(replace(pool, images=spoiled), teacher.network, space, ipc=8))
    ones = {x.numpy().tobytes() for x in spoiled[zeros[:10]]}
    assert not ones & {x.numpy().tobytes() for x in chosen.of_class(0)}


def test_what_does_not_belong_together_is_refused(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    with pytest.raises(ConfigError, match="the pool has 20"):
        refine_set(pool, teacher, digits, 21, CONFIG)
    with pytest.raises(ArtifactError, match="same in the same order"):
        refine_set(replace(pool, classes=pool.classes[::-1]), teacher, digits, 2, CONFIG)
    with pytest.raises(ArtifactError, match="surrogate images are"):
        refine_set(replace(pool, images=pool.images[:, :, :4, :4]), teacher, digits, 2, CONFIG)
    other = collect_statistics(teacher.network, digits.validation, 10)
    with pytest.raises(ArtifactError, match="of other images"):
        GroundSpace.build(other, digits.train, 1.0)
