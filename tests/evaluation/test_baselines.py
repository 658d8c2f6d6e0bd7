"""Baselines beside the sets, and their cache: what it gives back, what it must not, and who may damage it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gendistill.config import EvaluateConfig, TeacherConfig
from gendistill.config.commands import RunConfig
from gendistill.coreset.coresets import positions
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ArtifactError, ConfigError, DataError
from gendistill.evaluation import cache as baseline_cache
from gendistill.evaluation.baselines import EQUAL_BYTES, Baselines, compare_with_equal_bytes
from gendistill.evaluation.cache import KEYED, NOT_KEYED, BaselineCache, cache_folder
from gendistill.evaluation.entries import Entry
from gendistill.evaluation.evaluate import evaluate
from gendistill.evaluation.protocols import Settings
from gendistill.evaluation.result import Evaluation
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.registry import DISTILLERS
from gendistill.report.page import write_report
from gendistill.seeding import derive
from gendistill.surrogate.image_files import file_sizes
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import gendistill

QUICK = EvaluateConfig(
    runs=3, steps=4, width=8, baselines=("random", "kmeans", "full"), baseline_cache=None, describe=False
)


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(steps=2, width=8))


@pytest.fixture(scope="module")
def chosen(digits: RealData) -> SurrogateSet:
    return distill(digits, "random", 1, seed=9)


def named(rows: list[Entry]) -> list[tuple[str, str | None]]:
    return [(row.method, row.space) for row in rows]


# who stands beside


def test_all_baselines_stand_beside_and_compare_features_where_there_is_a_teacher(digits, teacher) -> None:
    beside = [("random", None), ("kmeans", "pixels")]
    alone = Baselines(digits, EvaluateConfig(), 0)
    assert named(alone.beside(2, 3, [])) == [*beside, ("herding", "pixels"), ("kcenter", "pixels")]
    features = "teacher features"
    guided = Baselines(digits, EvaluateConfig(), 0, teacher)
    wanted = [*beside, ("kmeans", features), ("herding", features), ("kcenter", features)]
    assert named(guided.beside(2, 3, [])) == wanted
    assert named(alone.full()) == [("full", None)]


def test_baselines_can_be_left_out_but_not_random(digits) -> None:
    few = Baselines(digits, EvaluateConfig(baselines=("random", "herding")), 0)
    assert named(few.beside(1, 3, [10**6])) == [("random", None), ("herding", "pixels")]
    assert few.full() == []
    for wrong in (("kmeans", "full"), ("random", "random")):
        with pytest.raises(ConfigError, match="with random, the reference"):
            EvaluateConfig(baselines=wrong)
    with pytest.raises(ConfigError, match="random, kmeans and full"):
        RunConfig(output_dir=Path("x"), evaluate=EvaluateConfig(baselines=("random",)))


def test_a_name_that_no_coreset_has_is_refused() -> None:
    for wrong in ("kmean", "wmdd"):  # a typing error; a method that does not choose real images
        with pytest.raises(
            ConfigError, match=f"evaluate.baselines is '{wrong}'; expected some of random, kmeans, herd"
        ):
            EvaluateConfig(baselines=("random", wrong))


OWN = """
import numpy as np
from gendistill.registry import register_coreset

@register_coreset("last")
def last(features, count, seed):
    return np.arange(len(features))[-count:]
"""


@pytest.mark.slow
def test_a_coreset_of_ones_own_is_a_baseline_in_python_on_the_command_line_and_in_yaml(
    digits, chosen, tmp_path, monkeypatch
) -> None:
    (tmp_path / "own_coreset.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(DISTILLERS, "_added", {})
    monkeypatch.setattr(DISTILLERS, "_functions", {})
    out, yaml = tmp_path / "out", tmp_path / "options.yaml"
    yaml.write_text("{runs: 3, steps: 4, width: 8, describe: false, baselines: [random, last, kmeans]}")
    chosen.save(tmp_path / "set")
    command = ("evaluate", "--surrogate", tmp_path / "set", "--config", yaml, "--baseline_cache", "null")
    assert gendistill("--plugin", "own_coreset", *command, "--output_dir", out) == 0
    found = Evaluation.load(out)
    assert [row["method"] for row in found.rows] == ["random", "kmeans", "last", "random"]  # ours stand first
    images = torch.cat([digits.train.images[digits.train.of_class(c)[-1:]] for c in range(10)])
    config = replace(QUICK, baselines=("random", "last"), baseline_cache=tmp_path / "cache")
    row = evaluate(digits, [chosen], config).rows[1]
    assert {k: v for k, v in row.items() if k != "seconds"} == {
        k: v for k, v in found.rows[2].items() if k != "seconds"
    }
    assert torch.equal(Baselines(digits, config, 0).beside(1, 3, [])[1].draws[0].images, images)
    assert write_report(out, digits).is_file()
    cached = BaselineCache.of_picks(digits, config)
    assert cached.made_from["coresets"] == {"last": OWN}  # edited, it chooses again
    assert "coresets" not in BaselineCache.of_picks(digits, QUICK).made_from


def test_there_are_five_random_draws_or_one_for_every_run_and_all_differ(digits) -> None:
    real = Baselines(digits, QUICK, 0)
    for runs, wanted in ((3, 5), (8, 8)):
        draws = real.beside(1, runs, [])[0].draws
        assert len({draw.images.numpy().tobytes() for draw in draws}) == len(draws) == wanted


def test_rows_say_their_images_and_bytes(digits, tmp_path) -> None:
    row = Baselines(digits, QUICK, 0).beside(2, 3, [])[1]
    picked = distill(digits, "kmeans", 2)
    picked.save(tmp_path)
    stored = json.loads((tmp_path / "manifest.json").read_text())
    assert row.facts["bytes"] == stored["bytes"]
    assert row.facts["stored_images"] == row.facts["decoded_images"] == 20
    assert row.facts["synthesis_seconds"] is None


@pytest.mark.slow
@settings(max_examples=10, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(ipc=st.integers(1, 4), factor=st.floats(0.2, 4))
def test_equal_bytes_is_the_smallest_random_set_of_which_every_draw_reaches_them(
    few: RealData, sizes: list[list[int]], ipc: int, factor: float
) -> None:
    real = Baselines(few, EvaluateConfig(baselines=("random", "bytes")), 0)
    total = round(factor * sum(size[ipc - 1] for size in sizes) / 5)
    rows = [row for row in real.beside(ipc, 5, [total]) if row.space == EQUAL_BYTES]
    most = len(sizes[0])
    wanted = next((n for n in range(1, most + 1) if all(size[n - 1] >= total for size in sizes)), most)
    assert [row.facts["stored_images"] for row in rows] == ([10 * wanted] if wanted > ipc else [])


@pytest.fixture(scope="module")
def few() -> RealData:
    return load_data(max_per_class=20)


@pytest.fixture(scope="module")
def sizes(few: RealData) -> list[list[int]]:
    """Bytes of each of five random draws at 1 to all images of the smallest class, each draw being encoded apart."""
    counts = range(1, min(few.train.counts(10)) + 1)
    draws = [[distill(few, "random", n, seed=derive(0, "random draw", r)) for n in counts] for r in range(5)]
    return [[sum(file_sizes(made.images)) for made in draw] for draw in draws]


def test_a_set_that_takes_more_than_all_real_images_is_compared_with_all_that_every_class_has() -> None:
    data = load_data(max_per_class=6)
    real = Baselines(data, EvaluateConfig(baselines=("random", "bytes")), 0)
    row = real.beside(1, 5, [10**9])[-1]
    assert row.facts["stored_images"] == 10 * min(data.train.counts(10))


def test_rows_that_store_more_are_compared_with_the_random_row_of_their_bytes() -> None:
    def row(method: str, space: str | None, size: int, accuracy: list[float], **more: object) -> dict:
        common = {
            "set": None,
            "labels": "hard",
            "ipc": 1,
            "network": "convnet",
            "stored_images": 1,
            "decoded_images": 1,
        }
        stored = {"images": size, "labels": 0}
        return {"method": method, "space": space, "bytes": stored, "accuracy": accuracy, **common, **more}

    small = row("random", EQUAL_BYTES, 20, [0.5, 0.5])
    large = row("random", EQUAL_BYTES, 30, [0.25, 0.25])
    soft = row("dm", None, 25, [0.75, 0.75], labels="soft", set="a")
    packed = row("idm", None, 99, [0.75, 0.75], decoded_images=4, set="b")
    plain = row("dm", None, 25, [0.75, 0.75], set="c")
    rows = [small, large, soft, packed, plain]
    rows += [row("random", None, 10, [0.5, 0.5]), row("random", "as x", 30, [0.5, 0.5], counts=(1, 2))]
    rows.append(row("idm", None, 8, [0.75, 0.75], decoded_images=4, set="d"))  # as many photographs take more
    found = [r["ci95_vs_equal_bytes"] for r in compare_with_equal_bytes(rows)]
    assert found[:5] == [None, None, [0.5, 0.5], [0.5, 0.5], None]  # a larger one than all: the most that there are
    assert found[5:] == [None, None, None]


def test_pooled_sets_are_compared_with_equal_bytes_by_set() -> None:
    common = {"set": None, "labels": "hard", "ipc": 1, "network": "convnet", "stored_images": 1, "decoded_images": 1}
    common |= {"bytes": {"images": 9, "labels": 0}, "space": None}
    equal = {**common, "method": "random", "space": EQUAL_BYTES, "accuracy": [0.5] * 15}
    sets = [0.4, 0.5, 0.6] * 5  # the runs of each set are alike
    pooled = {**common, "method": "dm", "set": ["a"], "decoded_images": 4, "accuracy": sets, "synthesis_seeds": 3}
    (low, high) = compare_with_equal_bytes([equal, pooled])[1]["ci95_vs_equal_bytes"]
    half = 4.303 * 0.1 / 3**0.5  # t(0.975, 2)
    assert (low, high) == pytest.approx((-half, half), abs=1e-3)


def test_coresets_are_those_of_distill_and_are_chosen_once(digits, teacher, tmp_path, monkeypatch) -> None:
    config = EvaluateConfig(
        baselines=("random", "kmeans", "herding", "kcenter"), baseline_cache=tmp_path, describe=False
    )
    features = teacher.statistics.features
    wanted = [distill(digits, "kmeans", 2, seed=4), distill(digits, "kmeans", 2, seed=4, features=features)]
    wanted += [distill(digits, method, 2, seed=4, features=features) for method in ("herding", "kcenter")]

    def only_random(method, *args):
        if method != "random":
            raise TypeError(method)
        return positions(method, *args)

    for look in range(2):
        found = Baselines(digits, config, 4, teacher).beside(2, 3, [])[1:]
        assert all(torch.equal(a.draws[0].images, b.images) for a, b in zip(found, wanted, strict=True)), look
        monkeypatch.setattr("gendistill.evaluation.baselines.positions", only_random)
    with pytest.raises(TypeError):
        Baselines(digits, config, 5, teacher).beside(2, 3, [])
    with pytest.raises(TypeError):
        Baselines(load_data(split_seed=1), config, 4, teacher).beside(2, 3, [])


def test_the_bytes_of_all_images_are_counted_once(digits, tmp_path, monkeypatch) -> None:
    config = EvaluateConfig(baseline_cache=tmp_path)
    (first,) = Baselines(digits, config, 0).full()
    assert first.facts["bytes"]["images"] == sum(file_sizes(digits.train.images))
    monkeypatch.setattr("gendistill.evaluation.baselines.file_sizes", None)  # so that encoding again would fail
    assert Baselines(digits, config, 1).full()[0].facts == first.facts
    with pytest.raises(TypeError):
        Baselines(load_data(split_seed=1), config, 0).full()


# what cannot be evaluated

BAD = [
    ({"network": "resnet99"}, 8, ConfigError, "resnet99"),
    ({"network": "convnet_bn", "batch_size": 1}, 8, ConfigError, "batch norm"),
    ({"features": "teacher", "describe": True}, 8, ConfigError, "add --teacher"),
    ({}, 16, DataError, "16x16 images"),
]


@pytest.mark.parametrize(("options", "size", "error", "words"), BAD, ids=["network", "batch", "features", "size"])
def test_what_cannot_be_trained_is_refused_before_anything_takes_long(
    digits, chosen, monkeypatch, options, size, error, words
) -> None:
    for slow in (
        "gendistill.evaluation.evaluate.all_entries",
        "gendistill.networks.feature_extractors.reference_network",
    ):
        monkeypatch.setattr(slow, None)  # which would fail with another error
    images = chosen.images.repeat(1, 1, size // 8, size // 8)
    with pytest.raises(error, match=words):
        evaluate(digits, [replace(chosen, images=images)], replace(QUICK, **options))


@pytest.mark.slow
def test_real_subsets_of_known_quality_are_ranked(digits) -> None:
    """k-means above random images above one image of each class over and over."""
    repeated = distill(digits, "random", 1, seed=3).take(torch.arange(10).repeat_interleave(10))
    config = replace(QUICK, runs=3, steps=100, width=16, baselines=("random", "kmeans"))
    random, kmeans, worst = evaluate(digits, [repeated], config)["rows"]
    assert kmeans["mean"] > random["mean"] > worst["mean"] + 0.1
    assert worst["verdict"] == "worse than random"
    assert kmeans["verdict"] != "worse than random"


# the cache


def rows(data: RealData, chosen: SurrogateSet, config: EvaluateConfig, seed: int = 0) -> list[dict]:
    return evaluate(data, [chosen], config, seed=seed)["rows"]


def without(found: list[dict], *names: str) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in names} for row in found]


@pytest.mark.slow
def test_a_second_evaluation_gives_the_same_rows_from_the_cache(digits, chosen, tmp_path) -> None:
    kept = replace(QUICK, baseline_cache=tmp_path / "cache")
    first, second = rows(digits, chosen, kept), rows(digits, chosen, kept)
    ours = [[row for row in found if not row["set"]] for found in (first, second)]
    assert [row["cached"] for row in first] == [0] * len(first)
    assert all(row["cached"] == len(row["accuracy"]) for row in second if not row["set"])
    assert not [row["cached"] for row in second if row["set"] and row["cached"]]
    assert without(ours[0], "cached") == without(ours[1], "cached")  # seconds too
    assert without(second, "cached", "seconds") == without(first, "cached", "seconds")
    assert without(rows(digits, chosen, QUICK), "cached", "seconds") == without(first, "cached", "seconds")
    assert all(json.loads(path.read_text()) for path in (tmp_path / "cache").iterdir())
    other = rows(digits, distill(digits, "random", 2, seed=9), kept)  # another IPC shares the full data alone
    assert {row["method"] for row in other if row["cached"]} == {"full"}
    more = rows(digits, chosen, replace(kept, runs=6, labels="hard"))[0]
    assert (more["cached"], len(more["accuracy"])) == (5, 6)


def test_without_a_folder_nothing_is_kept(digits, chosen, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows(digits, chosen, QUICK)
    assert not list(tmp_path.iterdir())
    assert cache_folder("auto") == tmp_path / "gendistill" / "baselines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("auto") == Path.home() / ".cache" / "gendistill" / "baselines"
    assert cache_folder(None) is None
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is a file"):
        cache_folder(tmp_path / "file")


CHANGES = [
    {"steps": 5}, {"width": 9}, {"legacy_best": True}, {"protocol": "dsa"}, {"batch_size": 32}, {"learning_rate": 1e-3},
    {"weight_decay": 0.0}, {"shift": 1}, {"flip": True}, {"depth": 2}, {"compile": True},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_changed_setting_misses_the_cache(digits, tmp_path, change) -> None:
    config = replace(QUICK, baseline_cache=tmp_path)
    cpu = torch.device("cpu")
    BaselineCache.of(digits, config, cpu).keep("run", {"accuracy": 0.5})
    assert BaselineCache.of(digits, replace(config, runs=7), cpu).recall("run") == {"accuracy": 0.5, "cached": True}
    assert BaselineCache.of(digits, replace(config, **change), cpu).recall("run") is None


def test_every_option_either_decides_a_run_or_is_known_not_to(digits) -> None:
    """A new option of the training must not give old outcomes."""
    decides = BaselineCache.of(digits, QUICK, torch.device("cpu")).made_from["settings"]
    assert {field.name for field in fields(Settings)} == {*decides, *KEYED, *NOT_KEYED}


def test_other_data_devices_precisions_and_versions_miss_the_cache(digits, tmp_path, monkeypatch) -> None:
    config, cpu = replace(QUICK, baseline_cache=tmp_path), torch.device("cpu")
    BaselineCache.of(digits, config, cpu).keep("run", {"accuracy": 0.5})
    assert BaselineCache.of(digits, config, cpu).recall("run-2") is None
    assert BaselineCache.of(load_data(split_seed=1), config, cpu).recall("run") is None
    assert BaselineCache.of(digits, config, torch.device("cuda")).recall("run") is None
    bf16 = replace(BaselineCache.of(digits, config, cpu), made_from={"bf16": True})
    assert bf16.recall("run") is None
    monkeypatch.setattr("gendistill.evaluation.cache.version", lambda name: "9.9")
    assert BaselineCache.of(digits, config, cpu).recall("run") is None


def test_every_pattern_of_the_training_code_names_a_file() -> None:
    assert all(any(baseline_cache.PACKAGE.glob(pattern)) for pattern in baseline_cache.TRAINING)


def test_edited_training_code_misses_the_cache(digits, tmp_path, monkeypatch) -> None:
    config, cpu = replace(QUICK, baseline_cache=tmp_path / "cache"), torch.device("cpu")
    for name in (
        "networks/training.py",
        "data/siamese.py",
        "evaluation/evaluator.py",
        "evaluation/protocols/__init__.py",
    ):
        assert (baseline_cache.PACKAGE / name).is_file()
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(baseline_cache.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(baseline_cache, "PACKAGE", copy)
        BaselineCache.of(digits, config, cpu).keep("run", {"accuracy": 0.5})
        assert BaselineCache.of(digits, config, cpu).recall("run") is not None
        (copy / name).write_text((copy / name).read_text() + "# edited\n")
        baseline_cache._sources.cache_clear()
        assert BaselineCache.of(digits, config, cpu).recall("run") is None


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.text(max_size=20))
def test_an_outcome_comes_back_bit_for_bit(tmp_path_factory, accuracy, per_class, run) -> None:
    cache = BaselineCache(tmp_path_factory.mktemp("cache"), {"format": 1})
    outcome = {"accuracy": accuracy, "per_class": per_class, "seconds": 0.1}
    cache.keep(run, outcome)
    assert cache.recall(run) == outcome
    assert BaselineCache(cache.folder, {"format": 1}).recall(run) == {**outcome, "cached": True}


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"key": {}, "outcome": {}, "content": ""}', "accuracy"],
    ids=["empty", "cut", "list", "binary", "other", "changed"],
)
def test_a_damaged_entry_is_trained_anew_with_a_warning(tmp_path, caplog, damage) -> None:
    cache = BaselineCache(tmp_path, {"format": 1})
    cache.keep("run", {"accuracy": 0.5})
    (path,) = tmp_path.iterdir()
    cache = BaselineCache(tmp_path, {"format": 1})
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.9") if damage == "accuracy" else damage)
    with caplog.at_level(logging.WARNING, "gendistill"):
        assert cache.recall("run") is None
    assert "computed again" in caplog.text
    cache.keep("run", {"accuracy": 0.25})
    assert cache.recall("run") == {"accuracy": 0.25}


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path, caplog) -> None:
    (tmp_path / "file").touch()
    cache = BaselineCache(tmp_path / "file" / "cache", {})
    with caplog.at_level(logging.WARNING, "gendistill"):
        cache.keep("a", {"accuracy": 0.5})
        cache.keep("b", {"accuracy": 0.5})
    assert caplog.text.count("not kept") == 1


def test_two_processes_may_write_and_read_the_same_entry(tmp_path) -> None:
    cache = BaselineCache(tmp_path, {"format": 1})
    outcome = {"accuracy": 0.5, "per_class": [0.1] * 2000}
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            whole = True
            for _ in range(100):
                cache.fresh.clear()
                cache.keep("run", outcome)
                whole &= cache.recall("run") == outcome
            os._exit(0 if whole else 1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1  # no partial file is left
