"""The ring buffer against one deque a class."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from gendistill.errors import ArtifactError
from gendistill.generator.memory import ClassMemory

BATCH = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=14)  # (class, active)
DIM = 6 * 14  # one direction for every image of a test, so that what is remembered can be read off


def contents(memory):
    """The images that each class remembers, ascending: the criteria do not look at the order."""
    found = []
    for vectors, filled in zip(memory.vectors, memory.filled, strict=True):
        numbers = vectors[filled].argmax(1)
        assert torch.equal(vectors[filled], F.one_hot(numbers, DIM).float())
        assert not vectors[~filled].any()
        found.append(sorted(numbers.tolist()))
    return found


def replay(batches, size, memory, masked=True):
    """Feed images, each along its own axis, to the memory and to deques; yields both contents after each batch."""
    queues = [deque(maxlen=size) for _ in range(3)]
    number = 0
    for batch in batches:
        numbers = torch.arange(number, number + len(batch))
        number += len(batch)
        labels, active = (torch.tensor(part) for part in zip(*batch, strict=True))
        memory.update((1 + numbers[:, None]) * F.one_hot(numbers, DIM), labels, active if masked else None)
        for image, (label, wanted) in zip(numbers.tolist(), batch, strict=True):
            if wanted or not masked:
                queues[label].append(image)
        yield contents(memory), [sorted(q) for q in queues]


@pytest.mark.parametrize("masked", [True, False])
@settings(deadline=None, max_examples=60)
@given(batches=st.lists(BATCH, max_size=6), size=st.integers(1, 5))
def test_memory_equals_one_deque_a_class(masked, batches, size):
    for found, expected in replay(batches, size, ClassMemory(3, size, DIM), masked):
        assert found == expected


@settings(deadline=None, max_examples=40)
@given(st.lists(BATCH, max_size=4), st.lists(BATCH, min_size=1, max_size=4), st.integers(1, 5))
def test_a_restored_memory_goes_on_as_the_first_would(before, after, size):
    memory, restored = ClassMemory(3, size, DIM), ClassMemory(3, size, DIM)
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


def test_vectors_have_length_one():
    memory = ClassMemory(2, 3, 5)
    z = 10 * torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    memory.update(z.bfloat16(), torch.tensor([0, 0, 0, 1]))
    assert memory.vectors.dtype == torch.float32
    torch.testing.assert_close(
        memory.vectors[0], z[:3].bfloat16().float() / z[:3].bfloat16().float().norm(dim=1)[:, None]
    )
    torch.testing.assert_close(memory.vectors[1, 0].norm(), torch.tensor(1.0))


def test_one_batch_of_more_than_the_memory_leaves_its_newest():
    memory = ClassMemory(2, 4, DIM)
    memory.update(torch.eye(DIM), torch.tensor([0, 1] * (DIM // 2)))
    assert contents(memory) == [[DIM - 8, DIM - 6, DIM - 4, DIM - 2], [DIM - 7, DIM - 5, DIM - 3, DIM - 1]]


def test_state_goes_through_a_file(tmp_path):
    memory, restored = ClassMemory(3, 4, DIM), ClassMemory(3, 4, DIM)
    memory.update(torch.eye(DIM)[:9], torch.arange(9) % 2)
    save_file(memory.state_dict(), tmp_path / "memory.safetensors")
    restored.load_state_dict(load_file(tmp_path / "memory.safetensors"))
    assert torch.equal(restored.vectors, memory.vectors)
    assert torch.equal(restored.filled, memory.filled)


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 1, 5), (3, 4, 6)])
def test_state_of_another_shape_is_refused(shape):
    with pytest.raises(ArtifactError, match=r"expected \(3, 4, 5\)"):
        ClassMemory(3, 4, 5).load_state_dict(ClassMemory(*shape).state_dict())


def test_nothing_is_read_on_the_host():
    """Tensors without values: whatever asks for one (item, nonzero, a mask as index) raises."""
    memory = ClassMemory(3, 4, 2, device="meta")
    labels = torch.zeros(5, dtype=torch.int64, device="meta")
    memory.update(torch.ones(5, 2, device="meta"), labels)
    memory.update(torch.ones(5, 2, device="meta"), labels, labels > 0)
    assert memory.filled.shape == (3, 4)
