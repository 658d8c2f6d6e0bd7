"""Every option of the matching family reaches the part that it is an option of, and every preset its method's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from gendistill.config import DataConfig, DistillConfig, MatchingConfig
from gendistill.config.flat import unflatten
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ConfigError, DataError
from gendistill.hashing import hash_tensors
from gendistill.io import WorkFolder
from gendistill.matching.build import build, matching_networks
from gendistill.matching.distribution import CharacteristicMatching
from gendistill.matching.engine import Matcher
from gendistill.matching.gradient import GradientMatching
from gendistill.matching.methods import plan_runs
from gendistill.matching.network_pool import BlendedNetworks, FreshNetworks, NetworkQueue

DREAM = {"selection": "representative"}


@pytest.fixture(scope="module")
def few() -> RealData:
    return load_data(DataConfig(max_per_class=20))


def built(data: RealData, method: Any, selection: Any = "random", **options: Any) -> Matcher:
    matching = {"width": 4, "real_batch": 4} | options
    flat = {"method": method, "ipc": 2, "iterations": 3, "selection": selection, "matching": matching}
    (run,) = plan_runs(unflatten(DistillConfig, flat), data)
    return build(data, run, seed=0)


def value(matcher: Matcher, place: str) -> Any:
    """What stands at ``place``: attributes below the matcher, joined by dots."""
    found: Any = matcher
    for name in place.split("."):
        found = getattr(found, name)
    return found


def test_a_class_without_images_is_refused_by_its_name(few: RealData) -> None:
    with pytest.raises(DataError, match="Class 'none' has no training image"):
        built(replace(few, classes=(*few.classes, "none")), "dm")


CASES = [  # method, option, value, selection, place, what is there
    ("idc", "distance", "mse", {}, "objective.distance", "mse"),
    ("idc", "match_head", True, {}, "objective.match_head", True),
    ("dc", "match_head", False, {}, "objective.match_head", False),
    ("idc", "feature_weight", 0.5, {}, "objective.feature_mean", 0.5),
    ("idc", "classes_per_chunk", 3, {}, "objective.classes_per_chunk", 3),
    ("idm", "class_aware", 7.0, {}, "objective.ce_weight", 7.0),
    ("dm", "classes_per_chunk", 3, {}, "objective.classes_per_chunk", 3),
    ("dm", "momentum", 0.25, {}, "plan.momentum", 0.25),
    ("dm", "learning_rate", 0.5, {}, "plan.learning_rates", (0.5,)),
    ("idc", "inner_steps", 7, {}, "plan.inner_steps", 7),
    ("idc", "most_views", 3, {}, "plan.most_views", 3),
    ("dm", "real_batch", 5, {}, "selection.batch_size", 5),
    ("dm", "interval", 9, DREAM, "selection.interval", 9),
    ("dm", "per_cluster", 2, DREAM, "selection.per_cluster", 2),
    ("dm", "cluster_weights", "free", DREAM, "selection.weights", "free"),
    ("dm", "candidates", 8, DREAM, "selection.candidates", 8),
    ("dm", "candidates", 0, DREAM, "selection.candidates", None),
    ("dm", "dimensions", 3, DREAM, "selection.dimensions", 3),
    ("dm", "dimensions", 0, DREAM, "selection.dimensions", None),
    ("dm", "flip", True, {}, "augmentation.operations", ("color", "crop", "cutout", "flip", "scale", "rotate")),
    ("idc", "flip", True, {}, "supply.training.augmentation.operations", ("flip", "color", "crop")),
    ("idc", "train_steps", 5, {}, "supply.steps", 5),
    ("idc", "train_batch", 6, {}, "supply.training.batch_size", 6),
    ("idc", "train_learning_rate", 0.3, {}, "supply.training.learning_rate", 0.3),
    ("idc", "cutmix", 0.25, {}, "supply.training.cutmix", 0.25),
    ("idc", "warm_steps", 1, {}, "supply.warm_steps", 1),
    ("idm", "train_steps", 5, {}, "supply.steps", 5),
    ("idm", "queue_size", 5, {}, "supply.size", 5),
    ("idm", "queue_interval", 6, {}, "supply.interval", 6),
    ("idm", "queue_most_steps", 8, {}, "supply.most_steps", 8),
    ("cf", "frequencies", 8, {}, "objective.frequencies", 8),
    ("cf", "amplitude_weight", 0.25, {}, "objective.amplitude_weight", 0.25),
    ("cf", "classes_per_chunk", 3, {}, "objective.classes_per_chunk", 3),
    ("cf", "pool_size", 3, {}, "supply.size", 3),
    ("cf", "pool_steps", 3, {}, "supply.steps", 3),
    ("cf", "optimizer", "sgd", {"learning_rate": 1.0}, "plan.optimizer", "sgd"),
    ("dm", "optimizer", "adam", {"learning_rate": 0.01}, "plan.optimizer", "adam"),
]


@pytest.mark.parametrize(
    ("method", "option", "given", "selection", "place", "wanted"),
    CASES,
    ids=[f"{case[0]}-{case[1]}-{case[2]}" for case in CASES],
)
def test_an_option_reaches_its_part(few, method, option, given, selection, place, wanted) -> None:
    assert value(built(few, method, **selection, **{option: given}), place) == wanted
    assert value(built(few, method, **selection), place) != wanted, "the case proves nothing"


@pytest.mark.parametrize(("method", "other"), [("cf", "sgd"), ("dm", "adam"), ("idc", "adam")])
def test_another_optimiser_needs_a_rate_of_its_own(few: RealData, method: str, other: str) -> None:
    with pytest.raises(ConfigError, match=f"learning_rate is None; expected a rate with optimizer {other}"):
        built(few, method, optimizer=other)
    built(few, method, optimizer="adam" if other == "sgd" else "sgd")  # its own


PRESETS = {  # whether the head is matched, distance; networks, where they learn; their momentum and decay
    "dc": (True, "cosine", "surrogate", 0.0, 0.0),
    "dsa": (True, "cosine", "surrogate", 0.0, 0.0),
    "idc": (False, "l1", "real", 0.9, 5e-4),  # grey images up to 32 px: l1
}


@pytest.mark.parametrize("method", list(PRESETS))
def test_gradient_matching_is_each_methods_own(few: RealData, method: str) -> None:
    made = built(few, method)
    assert isinstance(made.objective, GradientMatching)
    assert isinstance(made.supply, FreshNetworks)
    training = made.supply.training
    found = made.objective.match_head, made.objective.distance, made.supply.source
    assert (*found, training.momentum, training.weight_decay) == PRESETS[method]
    assert made.plan.by_class == (method == "idc")


def test_feature_matching_is_each_methods_own(few: RealData) -> None:
    dm, idm = built(few, "dm"), built(few, "idm")
    assert isinstance(dm.supply, FreshNetworks)
    assert (dm.supply.source, dm.objective.ce_weight, dm.plan.by_class) == ("none", 0.0, False)
    assert isinstance(idm.supply, NetworkQueue)
    assert (idm.objective.ce_weight, idm.plan.by_class, idm.sets[0].factor) == (50.0, True, 2)
    assert (idm.supply.training.momentum, idm.supply.training.weight_decay) == (0.9, 5e-4)
    cf = built(few, "cf")
    assert isinstance(cf.objective, CharacteristicMatching)
    assert isinstance(cf.supply, BlendedNetworks)
    assert (cf.plan.optimizer, cf.plan.momentum, cf.plan.by_class, cf.sets[0].factor) == ("adam", 0.9, False, 2)
    assert cf.supply.steps == 60 * max(1, len(few.train) // 256)  # 60 epochs


def test_cutout_is_for_matching_alone_and_idm_trains_on_images_as_they_are(few: RealData) -> None:
    bare = built(few, "idc")  # as on MNIST
    assert bare.augmentation.operations == bare.supply.training.augmentation.operations == ("color", "crop")
    idc = built(few, "idc", augmentation="all")
    assert idc.augmentation.operations == ("color", "crop", "cutout")
    assert idc.supply.training.augmentation.operations == ("color", "crop")
    assert built(few, "idm").supply.training.augmentation is None
    assert built(few, "dc").augmentation is None
    assert built(few, "dsa").augmentation.compose == "one"


@pytest.mark.parametrize(
    ("method", "own"), [("idc", {"inner_steps": 3, "train_steps": 1}), ("idm", {"train_steps": 1})]
)
def test_matching_networks_are_those_of_a_run(few: RealData, method: str, own: dict[str, int]) -> None:
    matching = MatchingConfig(width=4, real_batch=4, **own)
    config = DistillConfig(method=method, ipc=2, iterations=2, matching=matching)
    matcher, seen = build(few, plan_runs(config, few)[0], seed=1), []
    picks = matcher.selection.picks

    def spy(network: nn.Module, iteration: int, inner: int) -> Any:
        seen.append(hash_tensors(network.state_dict()))
        return picks(network, iteration, inner)

    matcher.selection.picks = spy  # type: ignore[method-assign]
    for _ in matcher.run():
        pass
    alone = [hash_tensors(network.state_dict()) for *_, network in matching_networks(few, config, seed=1)]
    assert alone == seen
    assert len(set(alone)) == len(alone) > 1


def test_matching_networks_that_learn_from_the_surrogate_are_refused(few: RealData) -> None:
    with pytest.raises(ConfigError, match="train_on is surrogate"):
        next(matching_networks(few, DistillConfig(method="dc", ipc=2, iterations=1)))


def test_a_folder_keeps_checkpoints_and_snapshots_from_python(few: RealData, tmp_path: Path) -> None:
    matching = MatchingConfig(width=4, real_batch=4, snapshot_every=1, checkpoint_every=1)
    config, work = DistillConfig(iterations=2, method="dm", matching=matching), WorkFolder(tmp_path, tmp_path / "log")
    made = distill(few, "dm", 1, config=config, folder=work)
    assert len([*(tmp_path / "snapshots").glob("*/ipc-1/manifest.json")]) == 2
    assert [*(tmp_path / "checkpoints").iterdir()]
    assert distill(few, "dm", 1, config=config, folder=work).content_hash() == made.content_hash()
