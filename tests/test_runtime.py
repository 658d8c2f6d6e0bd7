"""What runs a network: compiled, and as it is where the compiler fails."""

import pytest
import torch

from gendistill import runtime
from gendistill.progress import show_progress


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
