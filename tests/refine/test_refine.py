"""Selection and refinement: what they promise, on digits with a quickly trained teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from gendistill.cli import USAGE
from gendistill.config import DataConfig, DistillConfig, EvaluateConfig, MatchingConfig, RefineConfig, TeacherConfig
from gendistill.data.dataset import RealData, Split
from gendistill.data.pixels import to_float
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ArtifactError, ConfigError, DivergenceError
from gendistill.evaluation.evaluate import evaluate
from gendistill.io import WorkFolder, write_tensors
from gendistill.matching.distiller import match
from gendistill.matching.methods import plan_runs
from gendistill.networks.factories import batch_norm_layers, build_network
from gendistill.networks.statistics import collect_statistics
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.networks.training import is_correct
from gendistill.progress import finish
from gendistill.refine.constraints import PixelRegion, RefineAugmentation
from gendistill.refine.feature_space import FeatureSpace, ground_space, shrunk
from gendistill.refine.objective import (
    BarycenterTargets,
    RefineObjective,
    class_w2,
    cross_entropies,
    gate,
    matched_targets,
)
from gendistill.refine.optimization import refine_chunk, refine_images
from gendistill.refine.refiner import refine_set
from gendistill.refine.select import select
from gendistill.surrogate.set import SurrogateSet
from gendistill.transport.barycenter import assign, barycenter, kmeans_atoms
from tests.helpers import gendistill

CONFIG = RefineConfig(steps=40)


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(width=16, steps=120))


@pytest.fixture(scope="module")
def pool(digits: RealData) -> SurrogateSet:
    return distill(digits, "random", 20, seed=5)


@pytest.fixture(scope="module")
def space(digits: RealData, teacher: Teacher) -> FeatureSpace:
    return FeatureSpace.build([teacher], digits.train, pixel_weight=3.0)


def test_ground_space_gives_both_parts_their_weight(digits: RealData, teacher: Teacher, space: FeatureSpace) -> None:
    for label in range(10):
        points = torch.from_numpy(space.of_class(label))
        assert points.var(0, unbiased=False).sum().item() == pytest.approx(1 + 3, rel=1e-4)
    alone = FeatureSpace.build([teacher], digits.train, pixel_weight=0.0)
    assert alone.of_class(0).shape[1] == teacher.statistics.features.shape[1]


def test_images_move_toward_atoms_of_ones_own(pool: SurrogateSet, space: FeatureSpace) -> None:
    start, config = pool.prefix(3), replace(CONFIG, steps=3)
    points = space.points(start.images, start.labels)
    targets = matched_targets(points, start.labels, space)
    usual = refine_images(start, space, config, seed=1)
    own = refine_images(start, space, config, seed=1, atoms=targets.atoms)
    assert torch.equal(own.images, usual.images)
    other = refine_images(start, space, config, seed=1, atoms=targets.atoms.flip(1))
    assert not torch.equal(other.images, usual.images)
    with pytest.raises(ValueError, match="one point for each image"):
        refine_images(start, space, config, seed=1, atoms=targets.atoms[:-1])


@pytest.mark.slow
def test_computations_in_one_folder_keep_their_chunks_apart(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, space: FeatureSpace, tmp_path: Path
) -> None:
    """None of them has a label, and all have the same number of images."""
    work, config = WorkFolder(tmp_path, tmp_path / "log.jsonl"), replace(CONFIG, steps=3)
    start, others = pool.prefix(2), distill(digits, "random", 2, seed=6)
    flat = FeatureSpace.build([teacher], digits.train, pixel_weight=0.0)
    atoms = space.points(others.images, others.labels)
    cases: list[tuple[SurrogateSet, FeatureSpace, dict[str, Any]]] = [
        (start, space, {}),
        (others, space, {}),
        (start, flat, {}),
        (start, space, {"seed": 2, "config": replace(config, min_crop=0.5)}),
        (start, space, {"seed": 3, "config": replace(config, min_crop=0.5)}),
        (start, space, {"own": False}),
        (start, space, {"atoms": atoms}),
        (start, space, {"atoms": atoms.flip(1)}),
        (start, space, {"region": PixelRegion(bound=0.01)}),
    ]
    for number, (images, points, changes) in enumerate(cases, 1):
        options: dict[str, Any] = {"config": config, "seed": 1, **changes}
        alone, kept, again = (refine_images(images, points, **options, folder=f) for f in (None, work, work))
        assert torch.equal(kept.images, alone.images), options
        assert torch.equal(again.images, alone.images), options
        assert len(list((tmp_path / "chunks").iterdir())) == number


@pytest.mark.parametrize("images", [None, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(20, 1, 8, 8)])
def test_a_chunk_of_other_images_is_one_message(
    pool: SurrogateSet, space: FeatureSpace, tmp_path: Path, images: torch.Tensor | None
) -> None:
    work, config = WorkFolder(tmp_path, tmp_path / "log.jsonl"), replace(CONFIG, steps=1)
    refine_images(pool.prefix(2), space, config, seed=1, folder=work)
    (path,) = tmp_path.rglob("*.safetensors")
    write_tensors(path, {"x": torch.zeros(1)} if images is None else {"images": images})
    with pytest.raises(ArtifactError, match=r"00000\.safetensors has images .*; expected torch\.uint8 \(20, 1, 8, 8\)"):
        refine_images(pool.prefix(2), space, config, seed=1, folder=work)


def test_chunks_are_found_again_on_a_cpu_that_rounds_otherwise(
    pool: SurrogateSet, space: FeatureSpace, tmp_path: Path
) -> None:
    work, config = WorkFolder(tmp_path, tmp_path / "log.jsonl"), replace(CONFIG, steps=3)
    elsewhere = replace(space, pixel_scale=space.pixel_scale * (1 + 1e-6))
    assert (elsewhere.of_class(0) != space.of_class(0)).any()
    first, again = (refine_images(pool.prefix(2), points, config, seed=1, folder=work) for points in (space, elsewhere))
    assert torch.equal(again.images, first.images)
    assert len(list((tmp_path / "chunks").iterdir())) == 1


def test_selection_takes_distinct_pool_images_nearer_than_the_first(
    teacher: Teacher, pool: SurrogateSet, space: FeatureSpace
) -> None:
    chosen = finish(select(pool, space, ipc=5))
    first = pool.prefix(5)
    assert chosen.ipc == 5
    rows = {(int(y), x.numpy().tobytes()) for x, y in zip(pool.images, pool.labels, strict=True)}
    picked = [(int(y), x.numpy().tobytes()) for x, y in zip(chosen.images, chosen.labels, strict=True)]
    assert set(picked) <= rows
    w2 = [class_w2(space.points(s.images, s.labels), s.labels, space).mean() for s in (chosen, first)]
    assert w2[0] < w2[1]


def test_selection_picks_what_barycenters_of_one_class_after_another_pick(
    teacher: Teacher, pool: SurrogateSet, space: FeatureSpace
) -> None:
    chosen = finish(select(pool, space, ipc=4, seed=2))
    right = is_correct(teacher.network, pool.split)
    for label in range(10):
        real, own = space.of_class(label), pool.of_class(label)[right[pool.labels == label]]
        points = space.points(own, torch.full((len(own),), label)).numpy()
        picks = assign(barycenter(real, kmeans_atoms(real, 4, 2)), points)
        assert torch.equal(chosen.of_class(label), own[torch.from_numpy(picks)])


def test_refinement_lowers_w2_and_keeps_the_trust_region(
    digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    config = replace(CONFIG, trust_region=0.2)
    selected, refined = refine_set(pool, teacher, digits, 3, config)
    moved = (to_float(refined.images) - to_float(selected.images)).abs().max().item()
    assert 0 < moved <= 0.2 + 1 / 127.5
    assert refined.meta["w2"]["after"] < refined.meta["w2"]["before"]
    assert torch.equal(refined.labels, selected.labels)


@pytest.mark.slow
def test_refinement_is_deterministic_and_depends_on_every_weight(
    digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    def images(**changes: float) -> torch.Tensor:
        return refine_set(pool, teacher, digits, 2, replace(CONFIG, **changes))[1].images

    reference = images()
    assert torch.equal(images(), reference)
    for name in ("feature_weight", "batch_norm_weight", "cross_entropy_weight", "pixel_weight"):
        assert not torch.equal(images(**{name: 0.0}), reference), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10_bn", "resnetap10_bn"])
def test_resnets_of_the_field_guide_refinement(name: str) -> None:
    data = load_data(DataConfig(max_per_class=10))
    guide = train_teacher(data, TeacherConfig(network=name, width=16, steps=10, batch_size=10))
    assert guide.statistics.means.keys() == batch_norm_layers(guide.network).keys()
    pool, config = distill(data, "random", 4, seed=5), replace(CONFIG, steps=5)
    selected, refined = refine_set(pool, guide, data, 2, config)
    assert refined.meta["w2"]["after"] < refined.meta["w2"]["before"]
    assert not torch.equal(refined.images, selected.images)
    other = refine_set(pool, guide, data, 2, replace(config, batch_norm_weight=0.0))[1]
    assert not torch.equal(refined.images, other.images)


def test_zero_steps_return_the_selection(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    plain = train_teacher(digits, TeacherConfig(network="convnet", width=8, steps=20))
    for guide in (teacher, plain):  # of which one has no batch norm
        selected, refined = refine_set(pool, guide, digits, 2, replace(CONFIG, steps=0))
        assert torch.equal(selected.images, refined.images)
        assert refined.meta["w2"]["after"] == refined.meta["w2"]["before"]


def test_numbers_that_overflow_are_refused_not_saved(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    moments = teacher.statistics
    broken = {name: torch.full_like(mean, torch.nan) for name, mean in moments.means.items()}
    guide = replace(teacher, statistics=replace(moments, means=broken))
    with pytest.raises(DivergenceError, match="not finite"):
        refine_set(pool, guide, digits, 1, replace(CONFIG, steps=2))


def test_a_teacher_that_diverged_is_refused(digits: RealData, tmp_path: Path, capsys) -> None:
    options = ["--network", "convnet", "--width", 4, "--steps", 3, "--learning_rate", 1e30]
    assert gendistill("teacher", *options, "--output_dir", tmp_path / "teacher") == USAGE
    assert "Lower learning_rate" in capsys.readouterr().err
    assert not (tmp_path / "teacher").exists()


def test_moments_of_layers_that_a_network_has_not_are_refused(teacher: Teacher, tmp_path: Path) -> None:
    moments = teacher.statistics
    other = [{f"other.{name}": value for name, value in part.items()} for part in (moments.means, moments.variances)]
    strange = replace(teacher, statistics=replace(moments, means=other[0], variances=other[1]))
    strange.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ArtifactError, match=r"other\.body"):
        Teacher.from_pretrained(tmp_path / "teacher")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trust_region": 0.0}, "trust_region is 0.0; expected more than 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected more than 0"),
        ({"feature_weight": 0, "batch_norm_weight": 0, "cross_entropy_weight": 0}, "nothing would move the images"),
        ({"trust_region": 2.5}, "expected a number from 0 to 2"),
        ({"pixel_weight": 1e9}, "expected a number from 0 to 1000000"),
    ],
    ids=str,
)
def test_options_that_move_nothing_or_overflow_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RefineConfig(**changes)


def test_pixels_of_large_images_are_averaged_over_squares(digits: RealData, teacher: Teacher) -> None:
    """224 px become 56, and up to 64 px nothing is lost."""
    small = torch.rand(3, 1, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(shrunk(large), small)
    assert shrunk(small) is small
    images = large.requires_grad_()
    points = FeatureSpace.embed([torch.zeros(3, 2)], images, [torch.ones(3, 1), 2 * torch.ones(3, 1)])
    torch.testing.assert_close(points[:, 2:], 2 * small.flatten(1))
    points.sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 2 / 16))
    rows = Split(interpolate(digits.train.images[:40], 128), digits.train.labels[:40])
    spec = {"name": "convnet_bn", "channels": 1, "image_size": 128, "classes": 10, "width": 2, "depth": 2}
    guide = Teacher(build_network(**spec), collect_statistics(build_network(**spec), rows, 10), digits.classes, spec)
    space = FeatureSpace.build([guide], rows, pixel_weight=3.0)
    real = space.real_points(torch.arange(40))
    assert real.shape == (40, guide.statistics.features.shape[1] + 64 * 64)
    assert space.points(rows.images, rows.labels).shape == real.shape


def test_atoms_belong_to_their_own_images(teacher: Teacher, digits: RealData, space: FeatureSpace) -> None:
    """Real images as start: no image is nearer to another's atom by so much that swapping the two would pay."""
    chosen = distill(digits, "kmeans", 4, seed=0)
    points = space.points(chosen.images, chosen.labels)
    atoms = matched_targets(points, chosen.labels, space).atoms
    for label in range(10):
        members = chosen.labels == label
        cost = torch.cdist(points[members], atoms[members]).square()
        own = cost.diagonal().sum()
        for i in range(4):
            for j in range(i):
                swapped = own - cost[i, i] - cost[j, j] + cost[i, j] + cost[j, i]
                assert swapped >= own - 1e-3


def test_misclassified_images_are_left_out_while_enough_remain(
    teacher: Teacher, pool: SurrogateSet, space: FeatureSpace
) -> None:
    spoiled = pool.images.clone()
    zeros = torch.nonzero(pool.labels == 0).flatten()
    spoiled[zeros[:10]] = pool.images[pool.labels == 1][:10]  # ones under the label 0
    chosen = finish(select(replace(pool, images=spoiled), space, ipc=8))
    ones = {x.numpy().tobytes() for x in spoiled[zeros[:10]]}
    assert not ones & {x.numpy().tobytes() for x in chosen.of_class(0)}


def test_wrong_images_are_taken_only_where_right_ones_are_too_few(
    teacher: Teacher, pool: SurrogateSet, space: FeatureSpace
) -> None:
    right = is_correct(teacher.network, pool.split)
    spoiled, zeros = pool.images.clone(), torch.nonzero(pool.labels == 0).flatten()
    spoiled[zeros[4:]] = pool.images[pool.labels == 1][: len(zeros) - 4]  # four zeros stay
    loop = select(replace(pool, images=spoiled), space, ipc=8)
    record = next(loop)
    chosen = {x.numpy().tobytes() for x in finish(loop).of_class(0)}
    kept = [spoiled[i].numpy().tobytes() for i in zeros[:4] if right[i]]
    wrong = int((~is_correct(teacher.network, replace(pool, images=spoiled).split))[zeros].sum())
    assert set(kept) <= chosen
    assert record["left_out"] == wrong - (8 - (len(zeros) - wrong))


@pytest.mark.slow
def test_selection_takes_the_atoms_that_are_asked_for(pool: SurrogateSet, space: FeatureSpace) -> None:
    fixed, free, entropic = (
        finish(select(pool.prefix(10), space, ipc=4, **options)).images
        for options in ({}, {"weights": "free"}, {"solver": "sinkhorn"})
    )
    assert not torch.equal(fixed, free)
    assert not torch.equal(fixed, entropic)


def test_what_does_not_belong_together_is_refused(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    with pytest.raises(ConfigError, match="the pool has 20"):
        refine_set(pool, teacher, digits, 21, CONFIG)
    with pytest.raises(ArtifactError, match="same in the same order"):
        refine_set(replace(pool, classes=pool.classes[::-1]), teacher, digits, 2, CONFIG)
    with pytest.raises(ArtifactError, match="surrogate images are"):
        refine_set(replace(pool, images=pool.images[:, :, :4, :4]), teacher, digits, 2, CONFIG)
    with pytest.raises(ConfigError, match="has 0 images of a class"):
        refine_set(pool.take(torch.nonzero(pool.labels != 3).flatten()), teacher, digits, 2, CONFIG)
    many = distill(digits, "random", 100, seed=0)
    few = replace(digits, train=digits.train.take(torch.arange(200)))
    own = replace(teacher, statistics=collect_statistics(teacher.network, few.train, 10))
    with pytest.raises(ConfigError, match="to take atoms from"):
        refine_set(many, own, few, 50, replace(CONFIG, select=False))
    with pytest.raises(ConfigError, match="at most the images' side of 8"):
        refine_set(pool, teacher, digits, 2, replace(CONFIG, delta_size=9))
    other = collect_statistics(teacher.network, digits.validation, 10)
    with pytest.raises(ArtifactError, match="of other images"):
        FeatureSpace.build([replace(teacher, statistics=other)], digits.train, 1.0)


@pytest.mark.slow
def test_an_image_is_refined_alike_whatever_else_is_in_the_chunk(
    digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    config = replace(CONFIG, steps=20, min_crop=0.7, roll=1)
    sets = [refine_set(pool, teacher, digits, 3, replace(config, batch_size=n))[1].images for n in (30, 7, 2)]
    for apart in sets[1:]:  # with 2 every class goes in pieces
        gap = (sets[0].int() - apart.int()).abs()
        assert (gap > 1).float().mean() < 0.01  # rounding of other batch shapes
        assert gap.float().mean() < 0.2


def test_an_image_is_refined_alike_beside_classes_of_other_sizes(
    digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    """In chunks of one class as in a chunk of all, of which some have more images."""
    config = replace(CONFIG, steps=20, mixed_precision="no")
    space = ground_space([teacher], digits, config)
    uneven = pool.take(torch.cat([torch.nonzero(pool.labels == c).flatten()[: (12, 1, 3)[c % 3]] for c in range(10)]))
    together, apart = (refine_images(uneven, space, replace(config, batch_size=n), seed=0).images for n in (128, 1))
    assert (together.int() - apart.int()).abs().max() <= 1


def test_a_published_objective_lowers_w2_from_noise(digits: RealData, teacher: Teacher) -> None:
    noise = torch.randint(0, 256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    start = SurrogateSet(noise, torch.arange(10).repeat_interleave(2), digits.classes)
    config = RefineConfig(
        select=False, feature_loss="released", batch_norm_loss="published", pixel_weight=0.0, trust_region=2.0,
        cross_entropy_weight=1.0, learning_rate=0.1, steps=60,
    )  # fmt: skip
    selected, refined = refine_set(start, teacher, digits, 2, config)
    assert torch.equal(selected.images, start.images)
    assert refined.meta["w2"]["after"] < 0.6 * refined.meta["w2"]["before"]


def test_two_teachers_guide_together(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        refine_set(pool, [teacher, teacher], digits, 2, CONFIG)
    other = train_teacher(digits, TeacherConfig(width=8, depth=1, steps=60), seed=3)
    both = FeatureSpace.build([teacher, other], digits.train, pixel_weight=3.0)
    for label in range(10):
        points = torch.from_numpy(both.of_class(label))
        assert points.var(0, unbiased=False).sum().item() == pytest.approx(1 + 3, rel=1e-4)
    alone, together = (refine_set(pool, t, digits, 2, CONFIG)[1] for t in (teacher, [teacher, other]))
    assert not torch.equal(alone.images, together.images)
    assert together.meta["teacher_hash"] == [teacher.hash(), other.hash()]
    assert together.meta["w2"]["after"] < together.meta["w2"]["before"]


@pytest.mark.slow
def test_free_weights_travel_with_the_set_and_into_training(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, tmp_path: Path
) -> None:
    selected, refined = refine_set(pool, teacher, digits, 4, replace(CONFIG, weights="free"))
    for made in (selected, refined):
        by_class = made.weights.view(10, 4)
        torch.testing.assert_close(by_class.mean(1), torch.ones(10))
        assert by_class.std(1).min() > 0
    refined.save(tmp_path / "set")
    again = SurrogateSet.load(tmp_path / "set")
    torch.testing.assert_close(again.weights, refined.weights)
    assert again.content_hash() != replace(again, weights=None).content_hash()
    torch.testing.assert_close(again.prefix(2).weights.view(10, 2), by_class[:, :2])
    config = EvaluateConfig(runs=3, steps=8, width=8, describe=False)
    rows = evaluate(digits, [again, replace(again, weights=None)], config)["rows"]
    weighted, even = (row["accuracy"] for row in rows if row["set"])
    assert weighted != even


def test_a_class_without_spread_takes_the_others_unit(digits: RealData, teacher: Teacher) -> None:
    """Ten copies of one image: their W2 stays of the size of the others'."""
    images = digits.train.images.clone()
    own = torch.nonzero(digits.train.labels == 4).flatten()
    images[own] = images[own[:1]]
    copies = replace(digits, train=replace(digits.train, images=images))
    alike = replace(teacher, statistics=collect_statistics(teacher.network, copies.train, 10))
    flat = FeatureSpace.build([alike], copies.train, pixel_weight=1.0)
    points = flat.points(digits.train.images[:50], digits.train.labels[:50])
    assert class_w2(points, digits.train.labels[:50], flat).max() < 1e4


# the gate


def test_the_gate_refuses_images_that_a_held_out_network_finds_worse(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, space: FeatureSpace
) -> None:
    start, refined = refine_set(pool, teacher, digits, 4, CONFIG)
    spoiled = refined.images.clone()
    spoiled[::4] = 255 - spoiled[::4]  # the first image of every class
    points = space.points(start.images, start.labels)
    verdict = gate(start.images, points, spoiled, start.labels, space, held_out=teacher.network)
    worse = cross_entropies(teacher.network, spoiled, start.labels) > cross_entropies(
        teacher.network, start.images, start.labels
    )
    assert verdict.images == int(worse.sum()) >= 5
    assert not (verdict.kept & worse).any()


def test_the_gate_refuses_classes_whose_w2_does_not_fall(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, space: FeatureSpace
) -> None:
    start, refined = refine_set(pool, teacher, digits, 4, CONFIG)
    spoiled = torch.where(start.labels[:, None, None, None] == 3, 255 - refined.images, refined.images)
    points = space.points(start.images, start.labels)
    verdict = gate(start.images, points, spoiled, start.labels, space)
    assert (verdict.images, verdict.classes) == (0, 1)
    assert torch.equal(verdict.kept, start.labels != 3)
    assert verdict.after < verdict.before
    assert verdict.after <= verdict.ungated


def test_a_gated_refinement_counts_what_it_refused(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    held_out = train_teacher(digits, TeacherConfig(network="convnet", width=8, steps=80), seed=1)
    selected, refined = refine_set(pool, teacher, digits, 4, replace(CONFIG, gate=True), held_out=held_out)
    found = refined.meta["gate"]
    same = (refined.images == selected.images).flatten(1).all(1)
    assert found["images"] == 40
    assert found["kept"] == int((~same).sum())
    assert found["refused_images"] > 0
    assert refined.meta["w2"]["after"] <= refined.meta["w2"]["before"]


def test_a_held_out_network_must_be_another_and_be_asked(
    digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    alike = train_teacher(digits, TeacherConfig(width=16, steps=2), seed=1)
    with pytest.raises(ConfigError, match="expected another architecture"):
        refine_set(pool, teacher, digits, 4, replace(CONFIG, gate=True), held_out=alike)
    other = train_teacher(digits, TeacherConfig(network="convnet", width=8, steps=2), seed=1)
    with pytest.raises(ConfigError, match="None without gate true"):
        refine_set(pool, teacher, digits, 4, CONFIG, held_out=other)


def test_packed_sets_come_from_four_times_the_images(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    selected, refined = refine_set(pool, teacher, digits, 2, replace(CONFIG, pack=2))
    assert (selected.ipc, refined.ipc, refined.factor, len(refined.split)) == (8, 2, 2, 80)
    assert refined.meta["stages"][-2:] == ["barycenter", "pack"]


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 2])
def test_distribution_matching_carries_on_from_the_refined_images(
    factor: int, digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    config = replace(CONFIG, steps=3, pack=factor)
    _, refined = refine_set(pool, teacher, digits, 2, config, seed=4)
    _, made = refine_set(pool, teacher, digits, 2, replace(config, match_iterations=2, match_from=1), seed=4)
    matching = MatchingConfig(factor=factor, real_batch=32, learning_rate=0.125)
    options = DistillConfig(method="dm", ipc=2, iterations=2, matching=matching)
    (run,) = plan_runs(options, digits)
    (expected,) = match(digits, run, seed=4, given=refined)
    assert torch.equal(made.images, expected.images)
    assert not torch.equal(made.images, refined.images)
    assert made.factor == factor
    assert made.meta["stage"] == "refined"
    assert made.meta["stages"] == [*refined.meta["stages"], "match"]
    assert made.meta["matching"]["start"] == "set"
    assert made.meta["w2"] == refined.meta["w2"] | {"matched": made.meta["w2"]["matched"]}
    assert {"barycenter", "match"} <= made.meta["seconds"].keys()


def test_a_set_made_beside_other_test_images_is_refused(digits: RealData, teacher: Teacher) -> None:
    """The teacher, and the images the set would move to, may hold test images of its split."""
    with pytest.raises(ArtifactError, match="made from other images or splits"):
        refine_set(distill(load_data(split_seed=5), "random", 4), teacher, digits, 2, CONFIG)
    part = Split(digits.train.images[:600], digits.train.labels[:600])
    fewer = distill(replace(digits, train=part), "random", 4)
    foreign = replace(fewer, meta={})
    for made in (fewer, foreign):
        refined = refine_set(made, teacher, digits, 2, replace(CONFIG, steps=1))[1]
        assert refined.meta["data"]["test_fingerprint"] == digits.test_fingerprint


def test_sets_below_match_from_are_not_matched(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    config = replace(CONFIG, steps=2, match_iterations=1, match_from=2)
    stages = [refine_set(pool, teacher, digits, ipc, config, seed=0)[1].meta["stages"] for ipc in (1, 2)]
    assert [made[-1] for made in stages] == ["barycenter", "match"]
    assert replace(config, pack=2, match_from=4).is_matched(1)  # four images are decoded
    assert not replace(config, pack=2, match_from=5).is_matched(1)


@pytest.mark.slow
def test_the_command_says_which_sets_are_not_matched(
    teacher: Teacher, pool: SurrogateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher.save_pretrained(tmp_path / "teacher")
    pool.save(tmp_path / "pool")
    paths = ("--surrogate", tmp_path / "pool", "--teacher", tmp_path / "teacher", "--output_dir", tmp_path / "out")
    options = ("--ipc", "[1,2]", "--steps", 1, "--match_iterations", 1, "--match_from", 2)
    assert gendistill("refine", *paths, *options) == 0
    said = capsys.readouterr().err
    assert "refine ipc 1: not matched, as it is below --match_from 2" in said
    assert "refine ipc 2: not matched" not in said
    stages = [SurrogateSet.load(tmp_path / "out" / f"ipc-{ipc}").meta["stages"][-1] for ipc in (1, 2)]
    assert stages == ["barycenter", "match"]
    aware = ("--ipc", 1, "--pack", 2, "--match_iterations", 1, "--image_format", "webp", "--compression_aware", "true")
    assert gendistill("refine", *paths, *aware, "--steps", 1, "--overwrite") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "of 4 views a class: not matched, as it is below --match_from 5, so no step of it is compression-aware" in said
    )


@pytest.mark.parametrize("changes", [{"weights": "free"}, {"gate": True}])
def test_matching_after_refinement_keeps_neither_weights_nor_a_gate_s_word(changes: dict) -> None:
    with pytest.raises(ConfigError, match="match_iterations"):
        RefineConfig(match_iterations=1, **changes)


def test_match_from_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="match_from is 2; expected 5 without match_iterations"):
        RefineConfig(match_from=2)


def test_batch_norm_in_a_teachers_head_is_left_out_of_the_moments(digits: RealData) -> None:
    """levit's: no statistics are collected of it, for it comes after the features."""
    spec = {"name": "timm:levit_128s", "channels": 1, "image_size": 224, "classes": 2}
    network = build_network(**spec).eval()
    large = Split(interpolate(digits.train.images[:4], (224, 224)), torch.tensor([0, 1, 0, 1]))
    space = FeatureSpace.build([Teacher(network, collect_statistics(network, large, 2), ("0", "1"), spec)], large, 0.0)
    targets, where = BarycenterTargets(space.points(large.images, large.labels), torch.ones(4)), torch.arange(4)
    refined = finish(
        refine_chunk(
            large.images, large.labels, targets, space, steps=1, learning_rate=0.1, objective=RefineObjective(),
            region=PixelRegion(), crops=RefineAugmentation(), positions=where, total=4,
        )
    )  # fmt: skip
    assert not torch.equal(refined, large.images)


def test_published_features_keep_their_unit(digits: RealData, teacher: Teacher) -> None:
    raw = FeatureSpace.build([teacher], digits.train, pixel_weight=0.0, scaled=False)
    assert torch.equal(raw.real_points(torch.arange(len(digits.train))), teacher.statistics.features)


def test_a_teacher_that_names_no_data_is_refused(
    teacher: Teacher, pool: SurrogateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_others = {**teacher.meta, "data": {**teacher.meta["data"], "fingerprint": "of other images"}}
    replace(teacher, meta=of_others).save_pretrained(tmp_path / "teacher")
    pool.save(tmp_path / "pool")
    folders = ("--teacher", tmp_path / "teacher", "--surrogate", tmp_path / "pool", "--output_dir", tmp_path / "out")
    assert gendistill("refine", *folders) == USAGE
    assert "does not say how to read the images it was trained on" in capsys.readouterr().err
