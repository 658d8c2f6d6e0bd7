"""Speeds are measured once for each machine, and a choice is stable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gendistill import cpu_speed
from gendistill.stages import doctor

MEASURED = {"fp32": 1.0, "fp32 compiled": 0.8, "bf16 compiled": 0.4}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never() -> cpu_speed.Seconds:
    raise AssertionError


def test_what_is_measured_is_kept(cache: Path) -> None:
    assert cpu_speed.kept() is None
    assert cpu_speed.speeds(lambda: MEASURED) == MEASURED
    assert cpu_speed.speeds(never) == cpu_speed.kept() == MEASURED
    assert len(list((cache / "speed").glob("*.json"))) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"machine": 1, "seconds": {"fp32": 1.0}}'])
def test_a_damaged_file_is_measured_again(cache: Path, damage: str) -> None:
    cpu_speed.speeds(lambda: MEASURED)
    (path,) = (cache / "speed").glob("*.json")
    path.write_text(damage)
    assert cpu_speed.speeds(lambda: {**MEASURED, "fp32": 2.0})["fp32"] == 2.0
    path.write_text(path.read_text().replace("2.0", "3.0"))
    assert cpu_speed.speeds(lambda: MEASURED) == MEASURED


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA"])
def test_other_kernels_are_another_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_speed.speeds(lambda: MEASURED)
    monkeypatch.setenv(name, "AVX2")
    assert cpu_speed.kept() is None


def test_nothing_is_measured_where_nothing_can_be_kept(cache: Path) -> None:
    cache.write_text("a file")
    assert cpu_speed.speeds(never) is None


def test_eager_fp32_stays_unless_another_mode_is_clearly_faster() -> None:
    assert cpu_speed.fastest(MEASURED) == "bf16 compiled"
    assert cpu_speed.fastest({"fp32": 1.0, "fp32 compiled": 0.85, "bf16 compiled": 0.9}) == "fp32"
    assert cpu_speed.fastest({"fp32": 1.0, "fp32 compiled": 0.8, "bf16 compiled": 9.0}) == "fp32 compiled"
    assert cpu_speed.fastest({"fp32": 1.0}) == "fp32"


def test_modes_take_turns_and_the_least_counts() -> None:
    now, calls, names = [0.0], list[str](), {how: mode for mode, how in cpu_speed.MODES.items()}
    cost = {"fp32": iter([9.0, 2.0, 1.5, 1.0, 3.0]), "fp32 compiled": iter([9.0, 1.0, 0.5, 0.7, 0.9])}

    def make(bf16: bool, compiled: bool) -> Callable[[], None]:
        mode = names[bf16, compiled]
        seconds: Iterator[float] = cost.get(mode, iter([90.0, 9.0]))  # bf16 without units: timed once

        def step() -> None:
            calls.append(mode)
            now[0] += next(seconds)

        return step

    found = cpu_speed.measured(make, clock=lambda: now[0])
    assert found == {"fp32": 1.0, "fp32 compiled": 0.5, "bf16 compiled": 9.0}
    assert calls[6:] == 3 * ["fp32", "fp32 compiled"]


def test_the_doctor_shows_it() -> None:
    assert "not measured yet" in doctor._measured()
    cpu_speed.speeds(lambda: MEASURED)
    assert doctor._measured() == (
        "auto is bf16 compiled (a step: fp32 1000 ms, fp32 compiled 800 ms, bf16 compiled 400 ms)"
    )
