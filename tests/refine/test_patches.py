"""Patches: the crop of an image that the networks are most confident about, as it comes back from its tile."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.cli import USAGE
from gendistill.config import LabelConfig, Patches, RefineConfig
from gendistill.data.crops import cropped
from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_float, to_uint8
from gendistill.distillers import distill
from gendistill.errors import ConfigError
from gendistill.networks.factories import build_network
from gendistill.networks.soft_labelling import label_set
from gendistill.networks.teacher import Teacher
from gendistill.progress import finish
from gendistill.refine.patches import best_patches, random_square_crops
from gendistill.refine.refiner import pack, refine_set
from gendistill.surrogate.multi_formation import decode, through_tile
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import gendistill

NAMES = ("ant", "bee")


class Brightness(nn.Module):
    """A classifier of two classes, dark and bright, by the mean pixel."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(sign))

    def forward(self, images: Tensor) -> Tensor:
        mean = self.sign * images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


def noise(count: int, side: int = 9, channels: int = 3) -> SurrogateSet:
    rng = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, side, side), generator=rng, dtype=torch.uint8)
    return SurrogateSet(images, torch.arange(count) % 2, NAMES, {"method": "random"})


def networks(side: int = 9) -> list[nn.Module]:
    shape = {"channels": 3, "image_size": side, "classes": 2, "width": 4, "depth": 1}
    return [build_network("convnet_bn", seed=seed, **shape) for seed in (1, 2)]


# what is kept


def test_the_quadrant_that_holds_the_class_is_cut_out() -> None:
    images = torch.zeros(8, 1, 16, 16, dtype=torch.uint8)
    images[:, :, :8, 8:] = 255  # bright, as class 1 is, in the upper right quarter alone
    bright = SurrogateSet(images, torch.ones(8, dtype=torch.long), NAMES)
    made = finish(best_patches(bright, [Brightness()], patches=400, min_patch=0.05, factor=2))
    assert to_float(made.images).mean((1, 2, 3)).min() > 0.8  # the whole image has -0.5
    dark = replace(bright, labels=torch.zeros(8, dtype=torch.long))
    made = finish(best_patches(dark, [Brightness()], patches=400, min_patch=0.05, factor=2))
    assert to_float(made.images).mean((1, 2, 3)).max() < -0.95


def test_the_whole_image_stays_where_no_crop_is_better() -> None:
    pool = SurrogateSet(torch.full((4, 3, 8, 8), 90, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), NAMES)
    assert torch.equal(finish(best_patches(pool, [Brightness()], patches=5)).images, pool.images)
    record = next(best_patches(pool, [Brightness()], patches=5))
    assert (record["images"], record["cropped"]) == (4, 0)
    assert record["whole"] == record["cross_entropy"]


def test_one_crop_is_the_whole_image() -> None:
    pool = noise(6)
    assert torch.equal(finish(best_patches(pool, networks(), patches=1)).images, pool.images)


@pytest.mark.parametrize("factor", [1, 2])
def test_patches_are_those_of_a_slow_loop(factor: int) -> None:
    """One image, one crop and one network at a time; cut by hand, packed and decoded with the set's own functions."""
    pool, judges = noise(6), networks()
    made = finish(best_patches(pool, judges, patches=6, min_patch=0.1, factor=factor, seed=4))
    sides, centres = random_square_crops(pool.labels, 5, 0.1, 4)
    changed = 0
    for i, (image, label) in enumerate(zip(pool.images, pool.labels, strict=True)):
        tries = [image]
        for side, centre in zip(sides[:, i], centres[:, i], strict=True):
            tries.append(to_uint8(cropped(to_float(image)[None], side[None], centre[None]))[0])
        losses = []
        for tried in tries:
            stored = pack(SurrogateSet(tried.repeat(factor**2, 1, 1, 1), label.expand(factor**2), NAMES), factor)
            seen = to_float(decode(stored.images, factor)[:1])
            losses.append(torch.stack([F.cross_entropy(judge(seen), label[None]) for judge in judges]).mean())
        best = int(torch.stack(losses).argmin())
        assert torch.equal(made.images[i], tries[best])
        changed += best > 0
    assert changed > 0
    assert torch.equal(made.labels, pool.labels)
    assert (made.classes, made.meta) == (pool.classes, pool.meta)


def test_the_networks_decide_together() -> None:
    pool = noise(8)
    alone = [finish(best_patches(pool, [judge], patches=6)).images for judge in (Brightness(1.0), Brightness(-3.0))]
    both = finish(best_patches(pool, [Brightness(1.0), Brightness(-3.0)], patches=6)).images
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(both, alone[0])


def test_scores_are_of_what_the_tile_leaves() -> None:
    """Fine stripes are grey once they were shrunk, so only the crop's mean can speak for it."""
    stripes = torch.arange(16).remainder(2).mul(255).to(torch.uint8).expand(1, 1, 16, 16)
    assert to_float(through_tile(stripes, 4))[..., 2:-2].abs().max() < 0.2
    assert torch.equal(through_tile(stripes, 1), stripes)
    flat = torch.full((2, 3, 7, 7), 200, dtype=torch.uint8)
    assert torch.equal(through_tile(flat, 3), flat)


# draws


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(0, 6), st.floats(0.02, 1), st.integers(0, 99))
def test_squares_are_in_the_image_and_as_large_as_asked(labels, count, least, seed):
    sides, centres = random_square_crops(torch.tensor(labels), count, least, seed)
    assert sides.shape == centres.shape == (count, len(labels), 2)
    assert torch.equal(sides[..., 0], sides[..., 1])
    assert ((sides.square() >= least - 1e-5) & (sides <= 1)).all()
    assert (centres.abs() + sides <= 1 + 1e-6).all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 12))
def test_neither_other_images_nor_more_crops_change_an_image_s_own(labels, count, kept):
    sides, centres = random_square_crops(torch.tensor(labels), count + 2, 0.2, 7)
    fewer = random_square_crops(torch.tensor(labels[:kept], dtype=torch.long), count, 0.2, 7)
    assert torch.equal(fewer[0], sides[:count, :kept])
    assert torch.equal(fewer[1], centres[:count, :kept])
    order = sorted(range(len(labels)), key=lambda i: labels[i])  # as a folder has them
    assert torch.equal(random_square_crops(torch.tensor(sorted(labels)), count + 2, 0.2, 7)[0], sides[:, order])


def test_areas_and_places_are_uniform() -> None:
    sides, centres = random_square_crops(torch.zeros(400, dtype=torch.long), 5, 0.25, 0)
    area = sides[..., 0].square()
    assert area.mean().item() == pytest.approx(0.625, abs=0.02)
    assert area.min() < 0.26
    assert area.max() > 0.98
    place = centres / (1 - sides)
    assert place.mean().abs() < 0.05
    assert place.square().mean().item() == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("rows", [1, 4, 10])
def test_the_batch_size_changes_nothing(rows: int) -> None:
    pool, judges = noise(10), networks()
    whole = finish(best_patches(pool, judges, patches=5, factor=2, seed=2))
    assert torch.equal(
        finish(best_patches(pool, judges, patches=5, factor=2, seed=2, batch_size=rows)).images, whole.images
    )
    assert not torch.equal(finish(best_patches(pool, judges, patches=5, factor=2, seed=3)).images, whole.images)


def test_more_crops_make_no_image_worse() -> None:
    pool, judges = noise(10), networks()

    def loss(count: int) -> Tensor:
        images = to_float(through_tile(finish(best_patches(pool, judges, patches=count, factor=3)).images, 3))
        return torch.stack([F.cross_entropy(j(images), pool.labels, reduction="none") for j in judges]).mean(0)

    losses = [loss(count) for count in (1, 2, 5, 9)]
    for fewer, more in pairwise(losses):
        assert (more <= fewer + 1e-6).all()
    assert losses[-1].mean() < losses[0].mean()


# in the refine stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the teacher."""
    path = tmp_path_factory.mktemp("patches") / "teacher"
    assert gendistill("teacher", "--width", 8, "--steps", 60, "--output_dir", path) == 0
    return path


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return Teacher.from_pretrained(folder)


@pytest.fixture(scope="module")
def pool(digits: RealData) -> SurrogateSet:
    return distill(digits, "random", 12, seed=5)


@pytest.fixture(scope="module")
def folders(folder: Path, pool: SurrogateSet) -> tuple[Path, Path]:
    pool.save(folder.parent / "pool")
    return folder, folder.parent / "pool"


@pytest.mark.slow
def test_the_command_packs_patches_into_a_set_that_verifies(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, pool = folders
    out = tmp_path / "out"
    command = ("refine", "--surrogate", pool, "--teacher", teacher, "--ipc", "[1,2]", "--steps", 4)
    assert gendistill(*command, "--pack", 2, "--patches", 5, "--output_dir", out) == 0
    manifest = json.loads((out / "ipc-2" / "manifest.json").read_text())
    assert manifest["stages"] == ["patches", "select", "barycenter", "pack"]
    assert manifest["seconds"].keys() >= {"patches", "select", "barycenter", "pack"}
    counted = [manifest[key] for key in ("ipc", "factor", "stored_images", "decoded_images")]
    assert counted == [2, 2, 20, 80]
    files = list((out / "ipc-2" / "train").rglob("*.png"))
    assert manifest["bytes"]["images"] == sum(file.stat().st_size for file in files)
    assert manifest["w2"].keys() == {"before", "after", "packed"}
    assert SurrogateSet.load(out / "selected" / "ipc-8").meta["stages"] == ["patches", "select"]
    card = (out / "ipc-2" / "README.md").read_text()
    assert "80 (2 x 2 in each)" in card
    assert f"{manifest['bytes']['images']:,}" in card
    assert "most confident about" in card
    assert "shrunk, several to a stored image" in card
    capsys.readouterr()
    assert gendistill("verify", out / "ipc-2", out / "selected" / "ipc-8") == 0
    assert "20 images decoded to 80, 10 classes, IPC 2" in capsys.readouterr().out
    assert gendistill(*command, "--patches", 5, "--output_dir", tmp_path / "whole") == 0
    whole = json.loads((tmp_path / "whole" / "ipc-2" / "manifest.json").read_text())
    assert (whole["stages"], whole["factor"]) == (["patches", "select", "barycenter"], 1)
    assert gendistill("verify", tmp_path / "whole" / "ipc-2") == 0


@pytest.mark.slow
def test_the_stage_cuts_once_what_a_set_alone_would(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    paths = ("--teacher", folders[0], "--surrogate", folders[1], "--output_dir", tmp_path / "out")
    assert gendistill("refine", *paths, "--ipc", "[1,2]", "--steps", 0, "--pack", 2, "--patches", 3, "--seed", 1) == 0
    config = RefineConfig(steps=0, pack=2, patches=Patches(count=3))
    for ipc in (1, 2):
        alone = refine_set(pool, teacher, digits, ipc, config, seed=1)[1]
        assert torch.equal(SurrogateSet.load(tmp_path / "out" / f"ipc-{ipc}").images, alone.images)


def test_without_steps_the_selection_is_packed_and_no_barycenter_claimed(
    digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    selected, packed = refine_set(pool, teacher, digits, 2, RefineConfig(steps=0, pack=2))
    assert torch.equal(packed.images, pack(selected, 2).images)
    assert packed.meta["stages"] == ["select", "pack"]
    assert packed.meta["stage"] == "select"
    assert "barycenter" not in packed.meta["seconds"]
    unchosen = refine_set(pool, teacher, digits, 2, RefineConfig(steps=0, pack=2, select=False))[1]
    assert unchosen.meta["stages"] == ["pack"]
    assert torch.equal(unchosen.images, pack(pool.prefix(8), 2).images)
    assert packed.meta["w2"]["before"] == packed.meta["w2"]["after"]
    assert packed.meta["w2"]["packed"] < unchosen.meta["w2"]["packed"]


def test_labels_of_the_pool_are_neither_packed_nor_claimed(
    digits: RealData, teacher: Teacher, pool: SurrogateSet
) -> None:
    labelled = label_set(pool, teacher, LabelConfig())
    _, packed = refine_set(labelled, teacher, digits, 2, RefineConfig(steps=0, pack=2))
    assert packed.soft_labels is None
    assert packed.meta["stages"] == ["select", "pack"]
    assert not packed.meta.keys() & {"soft_labels", "label_teacher_hash"}
    with pytest.raises(ConfigError, match="has soft labels; expected hard labels alone"):
        pack(labelled, 2)
    with pytest.raises(ConfigError, match="has weights, of which a stored image has only one"):
        pack(replace(pool, weights=torch.ones(len(pool.labels))), 2)
    relabelled = label_set(packed, teacher, LabelConfig())
    assert relabelled.soft_labels.probabilities(torch.arange(80)).shape == (80, 10)  # of the views


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patches", 5, "--min_patch", 1], "refine.min_patch is 1; expected a number more than 0 and less than 1"),
        (["--patches", 0], "refine.patches is 0"),
        (["--patches", 2, "--min_patch", 0], "refine.min_patch is 0"),
        (["--pack", 9], "pack is 9; expected 1 to 8 for images of 8x8 px"),
        (["--pack", 4], "ipc is 1 with pack 4, which takes 16 images a class, but the pool has 12"),
        (["--pack", 2, "--weights", "free"], "fixed with pack above 1"),
        (["--steps", 0, "--gate", "true"], "refine.gate is True; expected false with steps 0"),
        (["--teacher", "[]"], "teacher is []; expected a path or a list"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_any_work(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options, message
) -> None:
    paths = ("--teacher", folders[0], "--surrogate", folders[1], "--output_dir", tmp_path / "out")
    assert gendistill("refine", *paths, "--ipc", 1, *options) == USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("least", [0.5, 0.25])
def test_crops_of_any_least_area_are_cut_on_the_command_line(folders: tuple[Path, Path], tmp_path: Path, least) -> None:
    paths = ("--teacher", folders[0], "--surrogate", folders[1], "--output_dir", tmp_path / "out")
    options = ("--ipc", "[1,2]", "--steps", 2, "--patches", 3, "--min_patch", least)
    assert gendistill("refine", *paths, *options) == 0
    assert SurrogateSet.load(tmp_path / "out" / "ipc-2").meta["stages"][:2] == ["patches", "select"]


def test_a_packed_pool_is_refused(
    pool: SurrogateSet, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(pool, 2).save(tmp_path / "packed")
    paths = ("--teacher", folders[0], "--surrogate", tmp_path / "packed", "--output_dir", tmp_path / "out")
    assert gendistill("refine", *paths, "--ipc", 1, "--patches", 3) == USAGE
    assert "holds 2x2 views; refinement takes whole images" in capsys.readouterr().err
