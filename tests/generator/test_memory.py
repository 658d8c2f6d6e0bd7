"""The ring buffer against one deque a class."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.generator.memory import ClassMemory

BATCH = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=14)  # (class, active)


def contents(memory):
    """What each class remembers, as sorted rows: the criteria do not look at the order."""
    return [sorted(v[f].tolist()) for v, f in zip(memory.vectors, memory.filled, strict=True)]


def replay(batches, size, memory, masked=True):
    """Feed numbered vectors to the memory and to deques; yields both contents after each batch."""
    queues = [deque(maxlen=size) for _ in range(3)]
    number = 0
    for batch in batches:
        z = torch.arange(number, number + 2 * len(batch), dtype=torch.float32).view(-1, 2)
        number += 2 * len(batch)
        labels, active = (torch.tensor(part) for part in zip(*batch, strict=True))
        memory.update(z, labels, active if masked else None)
        for row, (label, wanted) in zip(z.tolist(), batch, strict=True):
            if wanted or not masked:
                queues[label].append(row)
        yield contents(memory), [sorted(q) for q in queues]


@pytest.mark.parametrize("masked", [True, False])
@settings(deadline=None, max_examples=60)
@given(batches=st.lists(BATCH, max_size=6), size=st.integers(1, 5))
def test_memory_equals_one_deque_a_class(masked, batches, size):
    for found, expected in replay(batches, size, ClassMemory(3, size, 2), masked):
        assert found == expected


@settings(deadline=None, max_examples=40)
@given(st.lists(BATCH, max_size=4), st.lists(BATCH, min_size=1, max_size=4), st.integers(1, 5))
def test_a_restored_memory_goes_on_as_the_first_would(before, after, size):
    memory, restored = ClassMemory(3, size, 2), ClassMemory(3, size, 2)
    for _ in replay(before, size, memory):
        pass
    restored.load_state_dict({k: v.clone() for k, v in memory.state_dict().items()})
    assert contents(restored) == contents(memory)
    for (first, _), (second, _) in zip(replay(after, size, memory), replay(after, size, restored), strict=True):
        assert first == second
    assert torch.equal(memory.vectors, restored.vectors)


def test_a_new_memory_is_empty():
    memory = ClassMemory(3, 4, 2)
    assert memory.vectors.shape == (3, 4, 2)
    assert not memory.filled.any()


def test_memory_keeps_no_gradient():
    memory = ClassMemory(2, 3, 2)
    memory.update(torch.ones(2, 2, requires_grad=True) * 2, torch.tensor([0, 1]))
    assert not memory.vectors.requires_grad
    assert memory.filled.sum() == 2
