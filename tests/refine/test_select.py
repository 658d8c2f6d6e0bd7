"""Selection by the error of the teachers; selection by atoms is tested with refinement."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gendistill.config import RefineConfig, TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ConfigError
from gendistill.networks.teacher_training import train_teacher
from gendistill.progress import finish
from gendistill.refine.refiner import refine_set
from gendistill.refine.select import select_by_error
from gendistill.surrogate.set import SurrogateSet


class Fixed(nn.Module):
    """Gives each image the logits that its first pixels hold."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(sign * 5))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images[:, 0, 0, :3]


def pool_of(images: int = 30) -> SurrogateSet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 3, 3), generator=rng).byte()
    return SurrogateSet(pixels, torch.arange(images) % 3, ("a", "b", "c"))


def errors(pool: SurrogateSet, networks: list[Fixed]) -> tuple[list[float], list[bool]]:
    """The mean error of each image, and whether all networks classify it correctly, by a slow loop."""
    found, right = [], []
    for image, label in zip(pool.images, pool.labels.tolist(), strict=True):
        values, correct = [], True
        for network in networks:
            logits = [network.scale.item() * (value / 127.5 - 1) for value in image[0, 0, :3].tolist()]
            total = sum(map(math.exp, logits))
            values.append(math.dist([math.exp(x) / total for x in logits], [float(k == label) for k in range(3)]))
            correct = correct and logits.index(max(logits)) == label
        found.append(sum(values) / len(values))
        right.append(correct)
    return found, right


@pytest.mark.parametrize("networks", [[Fixed()], [Fixed(), Fixed(0.2)]], ids=["one", "two"])
@pytest.mark.parametrize("prefer", ["easy", "hard"])
def test_the_choice_equals_a_slow_loop(prefer: str, networks: list[Fixed]) -> None:
    pool = pool_of()
    error, right = errors(pool, networks)
    for ipc in (1, 3, 8):
        expected = []
        for label in range(3):
            members = [i for i in range(30) if i % 3 == label]
            correct = sorted((i for i in members if right[i]), key=lambda i: error[i], reverse=prefer == "hard")
            wrong = sorted((i for i in members if not right[i]), key=lambda i: error[i])
            assert wrong
            expected += [*correct, *wrong][:ipc]
        made = finish(select_by_error(pool, networks, ipc=ipc, prefer=prefer))  # type: ignore[arg-type]
        assert torch.equal(made.images, pool.images[expected])
        assert torch.equal(made.labels, pool.labels[expected])


def test_what_is_left_out_is_counted() -> None:
    pool, networks = pool_of(), [Fixed()]
    _, right = errors(pool, networks)
    (first, *_) = select_by_error(pool, networks, ipc=10, prefer="easy")
    assert first == {"class": "a", "left_out": 0}
    records = list(select_by_error(pool, networks, ipc=1, prefer="hard"))
    assert [r["left_out"] for r in records] == [sum(not right[i] for i in range(c, 30, 3)) for c in range(3)]


def test_a_pool_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="ipc is 11 but class 'a' has 10 images"):
        finish(select_by_error(pool_of(), [Fixed()], ipc=11, prefer="easy"))


def test_refinement_starts_from_the_choice() -> None:
    data: RealData = load_data(max_per_class=20)
    teacher = train_teacher(data, TeacherConfig(network="convnet", width=8, depth=1, steps=30))
    pool, config = distill(data, "random", 8, seed=1), RefineConfig(steps=0, batch_norm_weight=0.0)
    made = {
        prefer: refine_set(pool, teacher, data, 2, replace(config, select=prefer)) for prefer in (True, "easy", "hard")
    }
    for prefer in ("easy", "hard"):
        expected = finish(select_by_error(pool, [teacher.network], ipc=2, prefer=prefer))  # type: ignore[arg-type]
        assert torch.equal(made[prefer][0].images, expected.images)
        assert made[prefer][0].meta["stage"] == "select"
        assert made[prefer][1].meta["selection"] == prefer
    assert "selection" not in made[True][1].meta
    assert not torch.equal(made["easy"][0].images, made["hard"][0].images)
    assert torch.equal(refine_set(pool, teacher, data, 1, replace(config, select="hard"))[0].images[0],
                       made["hard"][0].images[0])  # fmt: skip


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"refine\.weights is 'free'; expected fixed with select hard"):
        RefineConfig(select="hard", weights="free")
    with pytest.raises(ConfigError, match=r"refine\.select is 'medium'"):
        RefineConfig(select="medium")  # type: ignore[arg-type]
