"""Work counted before training, and what it decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gendistill import cpu_speed, runtime
from gendistill.config import DataConfig, DistillConfig, EvaluateConfig, MatchingConfig
from gendistill.data.sources import load_data
from gendistill.evaluation.evaluator import resolve_precision
from gendistill.matching.methods import plan_runs
from gendistill.networks.factories import build_network
from gendistill.networks.training import forward_flop, training_flop

CPU = torch.device("cpu")


def test_operations_are_those_of_convolutions_and_matrices() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 25, 10))
    expected = 2 * (8 * 25 * 3 * 9 + 8 * 25 * 10)
    assert forward_flop(network, 3, 5) == expected
    assert training_flop(network, 3, 5, 7) == 3 * 7 * expected
    assert network.training


def test_a_network_of_timm_is_counted() -> None:
    network = build_network("timm:resnet10t", channels=1, image_size=32, classes=10, width=8, seed=0)
    assert forward_flop(network, 1, 32) > 1e6


def test_auto_is_both_or_none_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = runtime.native_bf16(CPU) and runtime._has_compiler()
    assert runtime.execution_mode("auto", "auto", CPU, 1e13, never) == (fast, fast)
    assert runtime.execution_mode("auto", "auto", CPU, 1e15, lambda: None) == (fast, fast)
    assert runtime.execution_mode("auto", "auto", CPU, 1e9) == (False, False)
    assert runtime.execution_mode("auto", "auto", CPU) == (False, False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    runtime._has_compiler.cache_clear()
    assert runtime.execution_mode("auto", "auto", CPU, 1e15, never) == (False, False)
    runtime._has_compiler.cache_clear()


def test_what_is_asked_for_is_done() -> None:
    assert runtime.execution_mode("no", "auto", CPU, 1e15) == (False, False)
    assert runtime.execution_mode("no", True, CPU) == (False, True)
    assert runtime.execution_mode("bf16", False, CPU) == (True, False)
    assert runtime.execution_mode("auto", True, CPU) == (runtime.native_bf16(CPU), True)


@pytest.mark.skipif(not runtime._has_compiler(), reason="nothing is compiled here")
@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ((1.0, 0.9, 0.4), (True, True)),
        ((1.0, 0.5, 9.0), (False, True)),
        ((1.0, 0.9, 9.0), (False, False)),
    ],
    ids=["bf16", "plain AVX2", "nothing gains enough"],
)
def test_long_work_runs_in_the_mode_that_was_measured_to_be_fastest(
    seconds: tuple[float, ...], chosen: tuple[bool, bool]
) -> None:
    speeds = dict(zip(cpu_speed.MODES, seconds, strict=True))
    assert runtime.execution_mode("auto", "auto", CPU, 1e15, lambda: speeds) == chosen
    for asked in (("no", "auto"), ("no", True), ("bf16", "auto"), ("auto", False)):
        assert runtime.execution_mode(*asked, CPU, 1e15, never) == runtime.execution_mode(*asked, CPU, 1e13, never)


def never() -> Any:
    raise AssertionError


def test_operations_are_counted_only_where_they_decide() -> None:
    for precision, compiles in (("no", "auto"), ("auto", False), ("bf16", True)):
        assert runtime.execution_mode(precision, compiles, CPU, never).compile is (compiles is True)


def test_short_runs_stay_as_they_are_and_long_ones_are_fast_whatever_sets_they_make() -> None:
    cpu_speed.speeds(lambda: {"fp32": 1.0, "fp32 compiled": 0.8, "bf16 compiled": 0.3})  # in the cache of the tests
    data = load_data(DataConfig(name="digits"))
    able = runtime.execution_mode("auto", "auto", CPU, 1e15)
    for steps, compiled in ((10, False), (10**7, able.compile)):
        assert resolve_precision(EvaluateConfig(steps=steps), data).compile == compiled
    for method in ("dm", "idc", "idm"):
        few, many = (
            plan_runs(DistillConfig(method=method, ipc=[1, 5], iterations=n, matching=MatchingConfig(width=8)), data)
            for n in (1, 10**7)
        )
        assert {run.fast for run in few} == {(False, False)}
        assert {run.fast for run in many} == {able}
