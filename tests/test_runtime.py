"""What runs a network: compiled, and as it is where the compiler fails; accelerate's state; when to save."""

from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from gendistill import runtime
from gendistill.progress import show_progress
from gendistill.runtime import MOST_LOST, CheckpointTimer, TimeLimit, make_accelerator, own_accelerate_state


def test_what_the_compiler_fails_on_runs_as_it_is(capsys):
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        raise ValueError("no code for this")

    twice = runtime.compiled_anew(lambda x: 2 * x, backend=backend)
    with show_progress():
        assert [twice(torch.tensor(float(n))).item() for n in (1, 2, 3)] == [2, 4, 6]
    assert len(calls) == 1
    assert capsys.readouterr().err.count("runs uncompiled") == 1


@pytest.mark.slow
def test_an_error_of_the_function_itself_is_not_taken_for_the_compilers():
    def refuse(x):
        raise ValueError("not this")

    with pytest.raises(ValueError, match="not this"):
        runtime.compiled_anew(refuse)(torch.ones(1))


def test_a_copy_to_a_gpu_is_from_pinned_memory_and_is_not_waited_for(monkeypatch):
    copies = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: copies.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **how: copies.append((device.type, how)) or self)
    runtime.to_device(torch.ones(1), torch.device("cuda"))
    runtime.to_device(torch.ones(1), torch.device("cpu"))
    assert copies == ["pinned", ("cuda", {"non_blocking": True}), ("cpu", {})]


@pytest.mark.parametrize("pace", [0.01, 0.5, 7.0, 90.0])
def test_a_checkpoint_is_due_after_a_minute_and_a_step_at_any_pace(pace: float) -> None:
    now, asked, saved = [0.0], 0, [0.0]

    def agree(seconds: float) -> float:
        nonlocal asked
        asked += 1
        return seconds

    timer, steps = CheckpointTimer(100, agree, lambda: now[0]), round(max(300 / pace, 5))
    for step in range(101, 101 + steps):
        now[0] += pace
        if timer.is_due(step):
            timer.restart(step)
            saved.append(now[0])
    gaps = [later - before for before, later in pairwise(saved)]
    assert gaps
    assert all(MOST_LOST <= gap <= MOST_LOST + 1.01 * pace for gap in gaps)
    assert asked <= min(steps, 20 * len(saved))  # agreeing waits for the device


def test_a_checkpoint_is_due_soon_where_steps_become_slow() -> None:
    now = [0.0]
    timer = CheckpointTimer(0, clock=lambda: now[0])
    due = []
    for step in range(1, 400):
        now[0] += 0.1 if step < 50 else 1.0
        if timer.is_due(step):
            due.append(now[0])
            break
    assert due[0] < 10 * MOST_LOST


def test_the_accelerator_of_the_caller_keeps_its_settings() -> None:
    before = {kind: dict(kind._shared_state) for kind in (AcceleratorState, GradientState)}
    mine = Accelerator(cpu=True, gradient_accumulation_steps=8)
    try:
        with own_accelerate_state():
            inner = make_accelerator("bf16", 2)
            assert (inner.gradient_accumulation_steps, inner.mixed_precision) == (2, "bf16")
        assert (mine.gradient_accumulation_steps, mine.mixed_precision) == (8, "no")
    finally:
        for kind, state in before.items():
            kind._shared_state.clear()
            kind._shared_state.update(state)


def test_processes_agree_on_the_time_that_is_left():
    asked = []
    limit = TimeLimit(100.0, lambda seconds: asked.append(seconds) or 7.0)
    limit.begin(0)
    assert asked == [pytest.approx(100.0, abs=1.0)]
    assert limit._timer._wait == 7.0
    assert limit.is_over(1)
    assert limit.stopped_at == 1
