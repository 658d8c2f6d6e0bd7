"""Real data shared by the tests."""

from pathlib import Path

import pytest

from gendistill.data.real import RealData
from gendistill.data.sources import load_data

CIFAR10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


@pytest.fixture(scope="session")
def digits() -> RealData:
    return load_data()


@pytest.fixture(scope="session")
def cifar10() -> RealData:
    if not any(CIFAR10.glob("*.parquet")):
        pytest.skip(f"no CIFAR-10 parquet files in {CIFAR10}")
    return load_data(name=str(CIFAR10), max_per_class=40)
