"""Learning rates by step."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from gendistill.networks.training import cosine, multi_step, warm_cosine


def scheduled(make, epochs, per_epoch):
    """Rates of one of torch's schedulers that is stepped after every epoch, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(epochs):
        rates += per_epoch * [optimizer.param_groups[0]["lr"]]
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("epochs", [6, 7, 10, 100, 1000])
def test_multi_step_is_torchs_by_epochs(epochs):
    found = multi_step(3 * epochs, (2 / 3, 5 / 6), 0.2, 3)
    milestones = [2 * epochs // 3, 5 * epochs // 6]
    expected = scheduled(lambda o: MultiStepLR(o, milestones, 0.2), epochs, 3)
    assert [found(step) for step in range(3 * epochs)] == pytest.approx(expected)


def test_cosine_is_torchs_by_epochs():
    found = cosine(20, 2)
    expected = scheduled(lambda o: LambdaLR(o, lambda e: 0.5 * (1 + math.cos(math.pi * e / 10))), 10, 2)
    assert [found(step) for step in range(20)] == pytest.approx(expected)


def test_warm_cosine_rises_over_a_twentieth_and_falls_to_nothing():
    found = [warm_cosine(200)(step) for step in range(200)]
    assert found[:10] == pytest.approx([(s + 1) / 10 if s < 9 else found[9] for s in range(10)])
    assert found[9:] == sorted(found[9:], reverse=True)
    assert found[-1] < 1e-3
