"""The joint momentum rule against torch.optim.SGD that steps after each class."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.matching.engine import joint_rule

ROUNDS = 7


def problem(classes, size=3):
    """Quadratics 0.5 x'Ax - b'x, one a class, another every round, as augmentation makes them."""
    rng = torch.Generator().manual_seed(classes)
    root = torch.randn(ROUNDS, classes, size, size, generator=rng, dtype=torch.float64)
    return root @ root.mT, torch.randn(ROUNDS, classes, size, generator=rng, dtype=torch.float64)


def gradients(images, matrices, vectors):
    return (matrices @ images[..., None])[..., 0] - vectors


def sequential(classes, momentum, learning_rate):
    """Positions of each class at its own gradients (rounds, classes, D) and of all after each round."""
    matrices, vectors = problem(classes)
    images = torch.zeros(vectors.shape[1:], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([images], lr=learning_rate, momentum=momentum)
    seen, ends = torch.zeros_like(vectors), torch.zeros_like(vectors)
    for turn in range(ROUNDS):
        for c in range(classes):
            seen[turn, c] = images[c].detach()
            images.grad = torch.zeros_like(images)
            images.grad[c] = gradients(images[c].detach(), matrices[turn, c], vectors[turn, c])
            optimizer.step()
        ends[turn] = images.detach()
    return seen, ends


def joint(classes, momentum, learning_rate):
    """The same of one step a round, with the momentum buffer after it."""
    matrices, vectors = problem(classes)
    images = torch.zeros(vectors.shape[1:], dtype=torch.float64, requires_grad=True)
    momentum, learning_rate = joint_rule(momentum, learning_rate, classes)
    optimizer = torch.optim.SGD([images], lr=learning_rate, momentum=momentum)
    seen, ends, buffers = (torch.zeros_like(vectors) for _ in range(3))
    for turn in range(ROUNDS):
        seen[turn] = images.detach()
        images.grad = gradients(images.detach(), matrices[turn], vectors[turn])
        optimizer.step()
        ends[turn] = images.detach()
        buffer = optimizer.state[images].get("momentum_buffer")
        buffers[turn] = images.grad if buffer is None else buffer
    return seen, ends, buffers


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.floats(0, 0.95))
def test_every_own_gradient_is_taken_where_the_sequential_loop_takes_it(classes, momentum):
    expected, _ = sequential(classes, momentum, 0.005)
    found, _, _ = joint(classes, momentum, 0.005)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def end_of_round(momentum, learning_rate, classes):
    """Factor of each class's buffer that leads from the joint step's images to the sequential loop's after a round.

    After any round, images of the class at place c in the loop = joint images + factor_c * joint momentum buffer, with
    factor_c = lr (mu^(C-c) - mu^C) / (1 - mu): 0 for the first class, growing to lr (mu - mu^C) / (1 - mu).
    """
    sums = [sum(momentum**power for power in range(c)) for c in range(classes)]
    return [learning_rate * momentum ** (classes - c) * sums[c] for c in range(classes)]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.floats(0, 0.95))
def test_the_end_of_a_round_differs_by_the_stated_part_of_the_buffer(classes, momentum):
    _, expected = sequential(classes, momentum, 0.005)
    _, ends, buffers = joint(classes, momentum, 0.005)
    factors = torch.tensor(end_of_round(momentum, 0.005, classes), dtype=torch.float64)
    torch.testing.assert_close(ends + factors[:, None] * buffers, expected, rtol=1e-12, atol=1e-12)


def test_the_uncorrected_rule_takes_its_gradients_elsewhere():
    expected, _ = sequential(10, 0.5, 0.005)
    matrices, vectors = problem(10)
    images = torch.zeros(10, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([images], lr=0.005, momentum=0.5)
    for turn in range(ROUNDS):
        last = images.detach().clone()
        images.grad = gradients(last, matrices[turn], vectors[turn])
        optimizer.step()
    assert (last - expected[-1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("momentum", "classes", "rule"),
    [(0.0, 10, (0.0, 1.0)), (0.5, 1, (0.5, 1.0)), (0.5, 2, (0.25, 1.5)), (0.5, 10, (2**-10, 2 - 2**-9))],
)
def test_hand_numbers(momentum, classes, rule):
    assert joint_rule(momentum, 1.0, classes) == pytest.approx(rule, rel=1e-15)


def test_hand_numbers_of_the_end_of_a_round():
    assert end_of_round(0.5, 1.0, 3) == [0.0, 0.25, 0.75]
    assert end_of_round(0.0, 1.0, 3) == [0.0, 0.0, 0.0]
