"""Real data shared by the tests."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import pytest
from sklearn import datasets

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes for a few kernels
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch counts the cores: workers share them
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

from gendistill.config import TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.evaluation import validation
from gendistill.generator import finetuning
from gendistill.networks import feature_extractors
from gendistill.registry import import_plugins, plugins_of_environment

import_plugins(plugins_of_environment())  # the contract suites take them
gc.disable()  # until the tests are imported
validation.STEPS = 1  # of the trainings after every refinement; their own tests set it
finetuning.PREVIEW_IMAGES = 2  # of a class, in the picture after every training
datasets.load_digits = cache(datasets.load_digits)  # which reads text
os.sync = os.fsync = lambda *_: None  # they wait for the disk, also for what others write; nothing here is kept

CIFAR10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, or one worker would end with such a file while the others wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """No garbage is looked for among the modules, which are most of what there is."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Processes of their own are forked from what there is now: all imports, and nothing computed."""
    if processes := sys.modules.get("tests.processes"):
        processes.server()


@pytest.fixture(scope="session")
def digits() -> RealData:
    return load_data()


@pytest.fixture(scope="session")
def cifar10() -> RealData:
    if not any(CIFAR10.glob("*.parquet")):
        pytest.skip(f"no CIFAR-10 parquet files in {CIFAR10}")
    return load_data(name=str(CIFAR10), max_per_class=40)


@pytest.fixture(scope="module")
def short_reference() -> Iterator[None]:
    """The network that looks at the sets of an evaluation is trained for 10 steps, where its findings do not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractors, "TeacherConfig", partial(TeacherConfig, steps=10))
        yield


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """A command that a test runs in this process sets the level of its log, which the next test must not find."""
    yield
    logging.getLogger("gendistill").setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Baseline runs are kept apart from the user's, and from an earlier session's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
