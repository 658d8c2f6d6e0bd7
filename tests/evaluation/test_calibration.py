"""Expected calibration error by hand."""

import pytest
import torch

from gendistill.evaluation.intervals import calibration_error


def error(confidence, correct, bins=15):
    return calibration_error(torch.tensor(confidence, dtype=torch.float64), torch.tensor(correct), bins)


def test_hand_numbers():
    # bins of a half: (0, 0.5] has 0.4 wrong and 0.5 right, (0.5, 1] has 0.7 wrong and 0.9 right
    assert error([0.4, 0.5, 0.7, 0.9], [False, True, False, True], 2) == pytest.approx((0.1 + 0.6) / 4)
    # one bin: mean confidence 0.625, accuracy 0.5
    assert error([0.4, 0.5, 0.7, 0.9], [False, True, False, True], 1) == pytest.approx(0.125)


def test_fifteen_bins_do_not_let_far_confidences_cancel():
    assert error([0.5, 0.9], [True, False]) == pytest.approx((0.5 + 0.9) / 2)
    assert error([0.5, 0.9], [True, False], 1) == pytest.approx(0.2)


def test_ends_of_the_range():
    assert error([1.0, 1.0], [True, True]) == 0
    assert error([1.0, 1.0], [False, False]) == 1
    assert error([0.0], [False]) == 0
    assert error([0.2, 0.2000001], [True, False], 5) == pytest.approx((0.8 + 0.2000001) / 2), "a bin has its upper end"


def test_a_calibrated_classifier_has_nearly_none():
    rng = torch.Generator().manual_seed(0)
    confidence = torch.rand(100_000, generator=rng, dtype=torch.float64)
    correct = torch.rand(100_000, generator=rng, dtype=torch.float64) < confidence
    assert calibration_error(confidence, correct) < 0.01


@pytest.mark.parametrize(
    ("confidence", "correct"), [([0.5], [True, False]), ([], []), ([1.5], [True]), ([float("nan")], [True])]
)
def test_bad_input_is_refused(confidence, correct):
    with pytest.raises(ValueError, match="onfidence"):
        error(confidence, correct)
