"""Soft labels on disk: what is no probability, or has no temperature, is refused when it is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gendistill.data.crops import Views
from gendistill.errors import ArtifactError
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import RECORD, SoftLabels, packed

ROWS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])


def labels(rows: torch.Tensor = ROWS, **changes: object) -> SoftLabels:
    top_k = changes.get("top_k")
    values, indices = packed(rows, top_k)  # type: ignore[arg-type]
    made = SoftLabels("per_image", 3, 2.0, Views(seed=0, batch_size=2), values=values, indices=indices)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_probabilities_are_read(tmp_path: Path, top_k: int | None) -> None:
    labels(top_k=top_k).save(tmp_path)
    found = SoftLabels.load(tmp_path, 2)
    assert found is not None
    torch.testing.assert_close(found.probabilities(torch.arange(2)).sum(1), torch.ones(2))


def test_many_classes_at_a_high_temperature_are_read(tmp_path: Path) -> None:
    rows = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(0)).softmax(1)
    made = labels(rows, classes=20_000, views=Views(seed=0, batch_size=4))
    made.save(tmp_path)
    assert SoftLabels.load(tmp_path, 4) is not None


@pytest.mark.parametrize(
    "row", [[float("nan"), 0.5, 0.5], [float("inf"), 0, 0], [0.0, 0, 0], [-0.5, 1.0, 0.5], [0.9, 0.9, 0.9]]
)
@pytest.mark.parametrize("top_k", [None, 2])
def test_rows_that_are_no_probabilities_are_refused(tmp_path: Path, row: list[float], top_k: int | None) -> None:
    rows = torch.stack([ROWS[0], torch.tensor(row)])
    made = labels(rows, top_k=top_k)
    if top_k:
        made = replace(made, values=rows[:, :2].half())
    made.save(tmp_path)
    with pytest.raises(ArtifactError, match="expected probabilities, which sum to 1"):
        SoftLabels.load(tmp_path, 2)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_divides_nothing_is_refused(tmp_path: Path, temperature: float) -> None:
    labels().save(tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(record | {"temperature": temperature}))
    with pytest.raises(ArtifactError, match=r"temperature is .*; expected a number above 0"):
        SoftLabels.load(tmp_path, 2)


def test_weights_of_infinity_are_refused(tmp_path: Path) -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    made = SurrogateSet(images, torch.tensor([0, 1]), ("a", "b"), weights=torch.tensor([1.0, float("inf")]))
    made.save(tmp_path / "set")
    with pytest.raises(ArtifactError, match=r"weights is .*; expected 2 numbers above 0"):
        SurrogateSet.load(tmp_path / "set")
