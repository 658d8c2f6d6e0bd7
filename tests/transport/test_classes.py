"""Barycenters of many classes in threads."""

from concurrent.futures import Future

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from gendistill.transport.barycenter import _in_order, class_barycenters, solve_barycenter
from tests.transport.clouds import cloud

CLASSES = [cloud(i, 30 + i, 4) for i in range(7)]  # of different sizes
STARTS = [cloud(100 + i, 3, 4) for i in range(7)]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"weights": "free"}, {"solver": "sinkhorn", "reg": 0.2}], ids=str)
def test_any_number_of_threads_gives_the_same(options):
    alone = class_barycenters(CLASSES, 3, seed=5, workers=1, **options)
    for workers in (2, 5):
        for a, b in zip(alone, class_barycenters(CLASSES, 3, seed=5, workers=workers, **options), strict=True):
            np.testing.assert_array_equal(a.atoms, b.atoms)
            np.testing.assert_array_equal(a.weights, b.weights)
            assert (a.w2, a.iterations) == (b.w2, b.iterations)


def test_classes_keep_their_order_and_take_their_own_starts():
    found = class_barycenters(iter(CLASSES), iter(STARTS), workers=3)
    for points, start, one in zip(CLASSES, STARTS, found, strict=True):
        np.testing.assert_allclose(one.atoms, solve_barycenter(points, start).atoms, atol=1e-12)


def test_no_more_classes_are_drawn_than_threads_need():
    drawn = []

    def futures():
        for number in range(10):
            drawn.append(number)
            future = Future()
            future.set_result(number)
            yield future

    results = _in_order(futures(), 2)
    assert next(results) == 0
    assert len(drawn) == 3
    assert list(results) == list(range(1, 10))


def test_the_class_that_cannot_be_is_named():
    with pytest.raises(ValueError, match=r"Class 2: .*row 1"):
        class_barycenters([CLASSES[0], CLASSES[1], np.array([[0.0], [np.nan]])], 1, workers=2)
    with pytest.raises(ValueError, match=r"Class 'cat': .*row 1"):
        class_barycenters([CLASSES[0], np.array([[0.0], [np.nan]])], 1, names=["dog", "cat"])


def test_one_start_a_class_is_wanted():
    with pytest.raises(ValueError, match="shorter"):
        class_barycenters(CLASSES, STARTS[:3], workers=1)


def test_no_worker_is_refused():
    with pytest.raises(ValueError, match="workers is 0"):
        class_barycenters(CLASSES, 2, workers=0)


def test_the_process_gets_its_blas_threads_back():
    threads = [pool["num_threads"] for pool in threadpool_info()]
    class_barycenters(CLASSES, 2, workers=2)
    assert [pool["num_threads"] for pool in threadpool_info()] == threads
