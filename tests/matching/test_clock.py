"""Seconds by part of a run."""

from __future__ import annotations

import time

import pytest
import torch

from gendistill.matching.engine import Clock


def test_parts_are_told_apart_and_added_up() -> None:
    clock = Clock(("match", "train"), torch.device("cpu"))
    clock.add({"train": 5.0})
    for _ in range(2):
        with clock.part("match"):
            time.sleep(0.02)
    found = clock.seconds()
    assert 0.04 <= found["match"] < 4
    assert found["train"] == 5.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: its stream is what is timed")
def test_on_a_gpu_the_stream_s_own_time_is_counted_and_the_host_is_not_stopped() -> None:
    device = torch.device("cuda")
    clock, x = Clock(("match",), device), torch.randn(8192, 8192, device=device)
    (x @ x).sum().item()
    begun = time.perf_counter()
    with clock.part("match"):
        for _ in range(20):
            y = x @ x
    host = time.perf_counter() - begun
    y.sum().item()
    whole = time.perf_counter() - begun
    assert host < clock.seconds()["match"] <= whole
