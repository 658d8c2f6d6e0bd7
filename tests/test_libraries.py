"""What other libraries do that we must not pass on: each test is named after the behaviour that our code answers.

docs/libraries.md has the table, with the tests of those that are tested in their own rooms.
"""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from diffusers import DDIMScheduler

from gendistill.config import ModelConfig, UNet
from gendistill.evaluation.set_metrics import _distances
from gendistill.generator.codec import PixelCodec
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.schedulers import make_scheduler
from gendistill.transport.plans import wasserstein2


@pytest.fixture(scope="module")
def generator() -> Generator:
    model = ModelConfig(architecture=UNet(block_out_channels=(8,), norm_num_groups=4), prediction_type="v_prediction")
    return build_generator(model, ("a", "b"), 8, 0, codec=PixelCodec(1))


def test_trailing_spacing_gives_diffusers_one_timestep_too_many_at_62_step_counts(generator: Generator) -> None:
    theirs, more = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing"), []
    for steps in range(1, 1001):
        theirs.set_timesteps(steps)
        more += [steps] if len(theirs.timesteps) != steps else []
    assert len(more) == 62
    usable = len(make_scheduler(generator, "ddim", 1000).timesteps)
    for steps in [one for one in more if one <= usable]:
        ours = make_scheduler(generator, "ddim", steps).timesteps
        assert len(ours) == steps
        assert ours.min() >= 0
        assert len(set(ours.tolist())) == steps


def test_histograms_of_integers_are_masses_as_floats_are() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2)), rng.normal(size=(3, 2))
    counts, others = np.array([3, 1, 2, 2]), np.array([1, 2, 1])
    expected = wasserstein2(x, y, counts / 8, others / 4)
    assert wasserstein2(x, y, counts, others) == pytest.approx(expected, rel=1e-12)
    assert wasserstein2(x, y, counts.tolist(), others.tolist()) == pytest.approx(expected, rel=1e-12)
    plan = ot.emd(counts / 8, others / 4, ot.dist(x, y))
    assert expected == pytest.approx(float((plan * ot.dist(x, y)).sum()), rel=1e-9)


def test_masses_of_nearly_one_sum_are_scaled_by_us_and_not_by_pot() -> None:
    """POT scales the second masses to the sum of the first where they differ by less than 1.5e-6, else it refuses."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(4, 2))
    a, b = np.full(5, 1 / 5), np.full(4, 1 / 4)
    expected = wasserstein2(x, y, a, b)
    for scale in (1 + 1e-6, 1 + 1e-3, 7.0):
        assert wasserstein2(x, y, a * scale, b) == pytest.approx(expected, rel=1e-12)
        assert wasserstein2(x, y, a, b * scale) == pytest.approx(expected, rel=1e-12)


def test_near_duplicates_keep_their_distance_where_float32_loses_it() -> None:
    """|x|^2 - 2 x y + |y|^2 in float32 loses differences below about 1e-3 of the norm."""
    x = 100 * torch.ones(30, 64)
    y = x + 1e-3
    true = 8e-3  # sqrt(64) * 1e-3
    lossy = torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")
    assert (lossy - true).abs().max() > 0.5 * true
    torch.testing.assert_close(_distances(x, y), torch.full((30, 30), true).double(), rtol=1e-2, atol=0)
