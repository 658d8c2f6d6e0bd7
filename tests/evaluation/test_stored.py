"""A collection in a file is evaluated as one in memory is, and no step reads all of it together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gendistill.config import Continual, EvaluateConfig
from gendistill.data.dataset import RealData
from gendistill.data.mapped import CentralImages, MappedImages, central, image_hashes
from gendistill.data.pixels import central_share
from gendistill.distillers import distill
from gendistill.evaluation import copies
from gendistill.evaluation.baselines import total_size
from gendistill.evaluation.continual import evaluate_continual
from gendistill.evaluation.copies import CopyCheck, LeakageCheck
from gendistill.evaluation.evaluate import evaluate
from gendistill.surrogate.image_files import file_sizes
from tests.data.mapped import MOST, mapped, noise, stored

pytestmark = pytest.mark.usefixtures("short_reference")

SHORT: dict[str, Any] = {"runs": 3, "steps": 3, "width": 8, "baseline_cache": None}


def without_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_times(value) for key, value in found.items() if "seconds" not in key}
    return [without_times(one) for one in found] if isinstance(found, list) else found


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"test_crop": 0.75, "baselines": ("random",), "legacy_best": True}])
def test_rows_measures_and_findings_are_those_of_memory(digits: RealData, options: dict[str, Any]) -> None:
    config, found = EvaluateConfig(**{**SHORT, **options}), []
    for data in (digits, stored(digits)):
        made = [distill(data, "random", 2, seed=1), distill(data, "random", 8)]
        result = evaluate(data, made, config)
        found.append(without_times([result.rows, result.scores, result.sets, result.findings]))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_continual_evaluation_is_that_of_memory(digits: RealData) -> None:
    config, found = EvaluateConfig(task=Continual(steps=2), runs=3, steps=3, width=8, test_crop=0.75), []
    for data in (digits, stored(digits)):
        found.append(without_times(evaluate_continual(data, distill(data, "random", 2), config).rows))
    assert found[0] == found[1]


@pytest.mark.slow
def test_no_step_of_an_evaluation_reads_all_images_together() -> None:
    data = stored(noise(3 * MOST))
    made = distill(data, "random", 2)
    result = evaluate(data, made, EvaluateConfig(**SHORT, baselines=("random", "kmeans", "full")))
    assert {row["method"] for row in result.rows} == {"random", "kmeans", "full"}


@pytest.mark.parametrize("kept", [0, 1 << 29])
@pytest.mark.parametrize("most", [None, 7])
def test_the_copy_check_is_that_of_memory(
    digits: RealData, most: int | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "BLOCK", 100)
    monkeypatch.setattr(copies, "KEPT", kept)
    sets = [
        torch.cat([digits.train.images[5:20], digits.test.images[:3]]),
        255 - digits.train.images[:40],
        digits.validation.images[:9],
    ]
    ours = [CopyCheck.of(data, most=most) for data in (digits, stored(digits))]
    for made, together in zip(sets, ours[1].check_all(sets), strict=True):
        plain = ours[0].check(made)
        assert plain.summary() == together.summary()
        assert torch.equal(plain.distances, together.distances)
        assert torch.equal(plain.positions, together.positions)
        assert plain.closest(5) == together.closest(5)
    leaks = [LeakageCheck.of(data) for data in (digits, stored(digits))]
    assert leaks[0].usual == leaks[1].usual
    assert torch.equal(leaks[0].near(plain), leaks[1].near(plain))


def test_only_points_that_take_little_memory_are_kept(digits: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def features(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return images.flatten(1).float()

    for kept, again in ((1 << 29, 1), (len(digits.train) * 64 * 4, 1), (len(digits.train) * 64 * 4 - 1, 2)):
        monkeypatch.setattr(copies, "KEPT", kept)
        reference = CopyCheck.of(digits, features=features, most=3)
        calls.clear()
        reference.check(digits.test.images[:5])
        assert calls == [3] + [len(digits.train)] * (again - 1)


def test_first_positions_are_found_by_hash(digits: RealData) -> None:
    split = stored(digits).train.take(torch.tensor([5, 3, 5, 9]))
    wanted = image_hashes(digits.train.images[[9, 5, 4, 3]])
    assert split.find(wanted).tolist() == [3, 0, -1, 1]
    assert split.take(torch.tensor([], dtype=torch.int64)).find(wanted).tolist() == [-1] * 4
    assert split.find(wanted[:0]).tolist() == []


def test_hashes_that_end_with_zeros_differ() -> None:
    from gendistill.data.mapped import as_bytes

    hashes = torch.zeros(3, 16, dtype=torch.uint8)
    hashes[1, 0], hashes[2, 1] = 1, 1
    assert len(set(as_bytes(hashes.numpy()).tolist())) == 3


def test_central_images_are_cut_when_they_are_read(digits: RealData) -> None:
    images, wanted = mapped(digits.test).images, central_share(digits.test.pixels, 0.75)
    found = central(images, 0.75)
    assert isinstance(images, MappedImages)
    assert isinstance(found, CentralImages)
    assert torch.equal(found[:], wanted)
    assert torch.equal(found[7], wanted[7])
    assert torch.equal(torch.cat([*found.split(100)]), wanted)
    assert torch.equal(torch.stack([*found]), wanted)
    assert torch.equal(found.take(torch.tensor([4, 2]))[:], wanted[[4, 2]])
    assert (found.hashes() == image_hashes(wanted)).all()


def test_the_size_of_many_images_is_estimated(digits: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = sum(file_sizes(digits.train.pixels))
    assert total_size(digits.train) == exact
    monkeypatch.setattr("gendistill.evaluation.baselines.ENCODED", 100)
    assert total_size(digits.train) == pytest.approx(exact, rel=0.02)
