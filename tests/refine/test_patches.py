"""Patches: the crop of an image that the networks are most confident about, as it comes back from its tile."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.cli import USAGE
from gendistill.config import LabelConfig, Patches, PatchPlaces, RefineConfig
from gendistill.data.crops import cropped
from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_float, to_uint8
from gendistill.distillers import distill
from gendistill.errors import ConfigError
from gendistill.networks.factories import build_network
from gendistill.networks.soft_labelling import label_set
from gendistill.networks.teacher import Teacher
from gendistill.progress import finish
from gendistill.refine.patches import (
    LEVELS,
    activation_maps,
    active_crops,
    best_patches,
    densest_crops,
    random_square_crops,
)
from gendistill.refine.refiner import pack, refine_set
from gendistill.surrogate.multi_formation import decode, through_tile, tiled
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


@pytest.mark.parametrize("places", ["random", "activation"])
@pytest.mark.parametrize("factor", [1, 2])
def test_patches_are_those_of_a_slow_loop(factor: int, places: PatchPlaces) -> None:
    """One image, one crop and one network at a time; cut by hand, packed and decoded with the set's own functions."""
    pool, judges = noise(6), networks()
    made = finish(best_patches(pool, judges, patches=6, min_patch=0.1, places=places, factor=factor, seed=4))
    if places == "random":
        sides, centres = random_square_crops(pool.labels, 5, 0.1, 4)
    else:
        sides, centres = active_crops(judges, pool.images, pool.labels, 5, 0.1)
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


@pytest.mark.parametrize("places", ["random", "activation"])
@pytest.mark.parametrize("rows", [1, 4, 10])
def test_the_batch_size_changes_nothing(rows: int, places: PatchPlaces) -> None:
    pool, judges = noise(10), networks()
    whole = finish(best_patches(pool, judges, patches=5, places=places, factor=2, seed=2))
    cut = best_patches(pool, judges, patches=5, places=places, factor=2, seed=2, batch_size=rows)
    assert torch.equal(finish(cut).images, whole.images)
    other = finish(best_patches(pool, judges, patches=5, places=places, factor=2, seed=3)).images
    assert torch.equal(other, whole.images) == (places == "activation")  # which draws nothing


def test_more_crops_make_no_image_worse() -> None:
    pool, judges = noise(10), networks()

    def loss(count: int) -> Tensor:
        images = to_float(through_tile(finish(best_patches(pool, judges, patches=count, factor=3)).images, 3))
        return torch.stack([F.cross_entropy(j(images), pool.labels, reduction="none") for j in judges]).mean(0)

    losses = [loss(count) for count in (1, 2, 5, 9)]
    for fewer, more in pairwise(losses):
        assert (more <= fewer + 1e-6).all()
    assert losses[-1].mean() < losses[0].mean()


# places by activation


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_the_densest_crop_is_that_of_a_double_loop(count, height, width, side, seed):
    """Few values, so that ties are frequent."""
    side = min(side, height, width)
    maps = torch.randint(0, 3, (count, height, width), generator=torch.Generator().manual_seed(seed)).float() / LEVELS
    expected = []
    for one in maps:
        tried = [
            (-float(one[top : top + side, left : left + side].sum()), math.hypot(*middle), top, left, middle)
            for top in range(height - side + 1)
            for left in range(width - side + 1)
            if (middle := (left + side / 2 - width / 2, top + side / 2 - height / 2))
        ]
        x, y = min(tried)[-1]
        expected.append([2 * x / width, 2 * y / height])
    found = densest_crops(maps, side)
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)
    assert (found.abs() + side / torch.tensor([width, height]) <= 1 + 1e-6).all()


def test_a_map_of_equal_values_is_cut_in_its_middle() -> None:
    """0.1 has no exact sums; nothing at all has no maximum to divide by."""
    assert torch.equal(densest_crops(torch.full((2, 9, 9), 0.1), 3), torch.zeros(2, 2))
    assert torch.equal(densest_crops(torch.zeros(1, 8, 8), 4), torch.zeros(1, 2))


NETWORKS = ("convnet", "convnet_bn", "resnet10", "timm:resnet10t", "timm:densenet121", "timm:vit_tiny_patch16_224")


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_has_maps_and_each_image_its_own(name: str) -> None:
    network = build_network(name, channels=3, image_size=32, classes=8, width=4).train()
    images, labels = to_float(noise(8, 32).images), torch.arange(8)
    maps = activation_maps(network, images, labels)
    assert maps.shape == (8, 32, 32)
    assert (maps >= 0).all()
    assert maps.amax((1, 2)).gt(0).any()
    alone = torch.cat([activation_maps(network, images[[i]], labels[[i]]) for i in range(8)])
    assert torch.allclose(alone, maps, rtol=1e-3, atol=1e-5 * float(maps.max()))
    assert not any((network.training, images.requires_grad, maps.requires_grad))
    assert all(p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_the_map_of_pooled_features_is_their_sum_by_the_weights_of_the_class() -> None:
    """Class activation maps as of Zhou et al. (arXiv 1512.04150), of which Grad-CAM is the general form."""
    network = build_network("resnet10", channels=3, image_size=32, classes=3)
    images, labels = to_float(noise(4, 32).images), torch.tensor([0, 2, 1, 1])
    features = network.body[:-2](images).detach()
    assert features.shape[2:] == (4, 4)
    expected = torch.einsum("bk,bkhw->bhw", network.head.weight.detach()[labels], features).relu()[:, None] / 16
    expected = F.interpolate(expected, (32, 32), mode="bilinear")[:, 0]
    assert torch.allclose(activation_maps(network, images, labels), expected, atol=1e-6)


def test_the_map_of_features_with_places_averages_their_weights() -> None:
    """A ConvNet's head has a weight for each position."""
    network = build_network("convnet", channels=3, image_size=16, classes=2, width=4)
    images, labels = to_float(noise(4, 16).images), torch.tensor([0, 1, 1, 0])
    features = network.body[:-1](images).detach()
    alpha = network.head.weight.detach()[labels].unflatten(1, features.shape[1:]).mean((2, 3), keepdim=True)
    expected = F.interpolate((alpha * features).sum(1, keepdim=True).relu(), (16, 16), mode="bilinear")[:, 0]
    assert torch.allclose(activation_maps(network, images, labels), expected, atol=1e-6)


class Attending(nn.Module):
    """Attention whose probabilities (B,heads,T,T) are the output of modules, then maps (B,h,h,C)."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.last = nn.Conv2d(1, 2, 4, 4), nn.Identity()
        self.softmax, self.drop = nn.Softmax(-1), nn.Dropout()

    def attend(self, features: Tensor) -> Tensor:
        tokens = features.flatten(2).mT
        attention = self.drop(self.softmax((tokens @ tokens.mT)[:, None]))
        mixed: Tensor = self.last((attention[:, 0] @ tokens).unflatten(1, features.shape[2:]))
        return mixed.mean((1, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.attend(self.places(images))


def test_attention_is_no_map_of_places() -> None:
    network, images, labels = Attending().eval(), to_float(noise(4, 16, 1).images), torch.tensor([0, 1, 1, 0])
    features = network.places(images).detach().requires_grad_()
    network.attend(features)[torch.arange(4), labels].sum().backward()
    expected = (features.grad.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    expected = F.interpolate(expected.detach(), (16, 16), mode="bilinear")[:, 0]
    assert torch.allclose(activation_maps(network, images, labels), expected, atol=1e-7)


@pytest.mark.parametrize("networks", [[Brightness()], [Brightness(), Brightness(3.0)]], ids=["one", "two"])
def test_a_bright_square_is_found(networks: list[nn.Module]) -> None:
    images = torch.zeros(3, 1, 16, 16, dtype=torch.uint8)
    corners = [(0, 0), (9, 4), (6, 12)]
    for image, (top, left) in zip(images, corners, strict=True):
        image[:, top : top + 4, left : left + 4] = 255
    labels = torch.ones(3, dtype=torch.long)
    sides, centres = active_crops(networks, images, labels, 4, 1 / 16)
    assert sides[:, 0, 0].tolist() == [4 / 16, 7 / 16, 10 / 16, 13 / 16]  # from 1/4 to 1 in quarters of the way
    expected = torch.tensor([[(2 * left + 4) / 16 - 1, (2 * top + 4) / 16 - 1] for top, left in corners])
    assert torch.allclose(centres[0], expected)
    assert ((centres - expected).abs() <= sides - 1 / 4 + 1e-6).all()  # the larger squares hold it as well
    made = finish(
        best_patches(
            SurrogateSet(images, labels, NAMES), [Brightness()], patches=5, min_patch=1 / 16, places="activation"
        )
    )
    assert to_float(made.images).mean((1, 2, 3)).min() > 0.6  # the whole images have -0.9


def test_networks_count_alike_whatever_the_size_of_their_gradients() -> None:
    images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    images[:, :, :4, 10:14] = 255
    labels = torch.ones(2, dtype=torch.long)
    alone = active_crops([Brightness()], images, labels, 3, 0.1)
    other = Brightness(-1e6)  # active wherever the image is dark
    assert not torch.equal(active_crops([other], images, labels, 3, 0.1)[1], alone[1])
    assert torch.equal(active_crops([Brightness(), other], images, labels, 3, 0.1)[1], alone[1])
    assert active_crops([Brightness()], images, labels, 0, 0.1)[0].shape == (0, 2, 2)


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


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 80 coloured images of 64 px, with the teacher ``t`` and the pool ``p`` of 32 a class made of them."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name, shade in (("ant", 90), ("bee", 140)):
        (root / "data" / name).mkdir(parents=True)
        for i in range(40):
            blocks = rng.normal(shade, 50, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(blocks).resize((64, 64), Image.Resampling.BICUBIC).save(root / "data" / name / f"{i}.png")
    data = ("--data.name", root / "data", "--data.image_size", 64, "--data.test_fraction", 0.1)
    few = ("--width", 4, "--steps", 8, "--batch_size", 16)
    assert gendistill("teacher", *data, *few, "--output_dir", root / "t") == 0
    assert gendistill("distill", "--method", "random", *data, "--ipc", 32, "--output_dir", root / "p") == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "ipc"), [(3, 2), (4, 1)])
def test_the_tiles_of_a_class_come_from_one_assignment_whatever_the_side(
    factor: int, ipc: int, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three tiles of 64 pixels have 21, 22 and 21; every command reads such a set."""
    out = tmp_path / "out"
    paths = ("--surrogate", photographs / "p" / "ipc-32", "--teacher", photographs / "t")
    options = ("--ipc", ipc, "--pack", factor, "--patches", 3, "--patch_places", "activation", "--steps", 0)
    assert gendistill("refine", *paths, *options, "--output_dir", out) == 0
    packed, chosen = (
        SurrogateSet.load(out / f"ipc-{ipc}"),
        SurrogateSet.load(out / "selected" / f"ipc-{ipc * factor**2}"),
    )
    assert packed.images.shape == (2 * ipc, 3, 64, 64)
    pool, judge = SurrogateSet.load(photographs / "p" / "ipc-32"), Teacher.from_pretrained(photographs / "t").network
    crops = finish(best_patches(pool, [judge], patches=3, places="activation", factor=factor))
    assert not torch.equal(crops.images, pool.images)
    for label in range(2):
        tiles, offered = chosen.of_class(label).flatten(1), crops.of_class(label).flatten(1)
        same = (tiles[:, None] == offered).all(2)
        assert same.sum(1).eq(1).all()  # each is one image of the pool,
        assert same.sum(0).le(1).all()  # which no other tile of the class shows
        assert len(tiles) == ipc * factor**2
    expected = torch.cat([chosen.of_class(label) for label in range(2)])
    assert torch.equal(packed.images, tiled(expected, factor))
    views = packed.split
    assert views.labels.bincount().tolist() == [ipc * factor**2] * 2
    assert (views.images.float() - expected).abs().mean() < 12
    assert f"{2 * ipc * factor**2} ({factor} x {factor} in each)" in (out / f"ipc-{ipc}" / "README.md").read_text()
    quick = ("--runs", 3, "--steps", 2, "--width", 4, "--baselines", "random", "--baseline_cache", "null")
    made = ("--surrogate", out / f"ipc-{ipc}", "--teacher", photographs / "t")
    assert gendistill("evaluate", *made, *quick, "--output_dir", tmp_path / "rows") == 0
    assert gendistill("show", out / f"ipc-{ipc}", *made[2:], "--output_dir", tmp_path / "show") == 0
    capsys.readouterr()
    assert gendistill("verify", out / f"ipc-{ipc}") == 0
    assert f"{2 * ipc} images decoded to {2 * ipc * factor**2}, 2 classes" in capsys.readouterr().out


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
        (
            ["--patch_places", "activation"],
            "refine.patch_places is 'activation'; expected 'random': it is used only with patches",
        ),
        (["--patches", 2, "--patch_places", "cam"], "refine.patch_places is 'cam'; expected"),
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
