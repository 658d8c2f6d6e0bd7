"""Protocols: what they resolve to, how long they train, and that each one evaluates."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from gendistill.config import EvaluateConfig, Protocol
from gendistill.data.dataset import Split
from gendistill.data.pixels import central_share
from gendistill.errors import ConfigError
from gendistill.evaluation.entries import Entry
from gendistill.evaluation.evaluator import evaluate_entries
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.evaluation.summary import FULL, RANDOM
from gendistill.progress import finish

NAMES = get_args(Protocol)


def settings(name="gendistill", **given):
    return resolve_protocol(EvaluateConfig(protocol=name, **given))


def test_the_default_is_what_the_evaluation_always_was():
    found = settings()
    assert (found.network, found.width, found.steps, found.batch_size) == (("convnet",), 64, 200, 64)
    assert (found.optimizer, found.learning_rate, found.weight_decay) == ("adamw", 3e-3, 5e-4)
    assert (found.schedule, found.labels, found.augments) == ("warm_cosine", "hard", False)
    assert found.changed == ()


@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_is_whole_and_survives_json(name):
    found = settings(name)
    assert found.protocol == name
    assert (found.steps is None) != (found.epochs is None)
    assert json.loads(json.dumps(found.to_dict()))["changed"] == []
    assert found.length(100, 10)[0] > 0
    assert found.length(5000, 10, full=True)[0] > 0
    steps, per_epoch = found.length(100, 10)
    rates = [found.rate(steps, per_epoch)(step) for step in range(steps)]
    assert max(rates) > 0.99
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[-1] < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_gives_wins_and_is_named(name):
    found = settings(name, network="resnet10", learning_rate=0.5, flip=True, shift=3)
    assert (found.network, found.learning_rate, found.flip, found.shift) == (("resnet10",), 0.5, True, 3)
    assert {"network", "learning_rate"} <= set(found.changed)


def test_a_value_given_as_the_protocol_has_it_is_no_change():
    assert settings("idc", network="convnet", width=128, batch_size=64, epochs=1000).changed == ()
    assert settings("idc", steps=1000).changed == ("steps",)


def test_shift_and_flip_count_as_changes_of_the_default():
    assert settings(shift=1).changed == ("shift",)
    assert settings(flip=True).changed == ("flip",)
    assert settings(flip=False, shift=0).changed == ()


# length


def test_epochs_become_steps_by_the_size_of_the_set():
    idc = settings("idc")
    assert idc.length(100, 10) == (2000, 2)
    assert idc.length(10, 10) == (1000, 1)
    assert idc.length(129, 10) == (3000, 3)
    assert idc.length(1000, 10, full=True) == (300 * 16, 16)
    assert settings("dsa").length(500, 10) == (2000, 2)
    assert settings().length(100, 10) == settings().length(5000, 10, full=True) == (200, 1)


@pytest.mark.parametrize(
    ("images_a_class", "epochs"),
    [(1, 3000), (2, 2000), (10, 2000), (11, 1500), (50, 1500), (51, 1000), (200, 1000), (201, 500), (501, 300)],
)
def test_minimax_epochs_go_by_images_a_class(images_a_class, epochs):
    found = settings("minimax-hard")
    assert found.length(10 * images_a_class, 10)[0] == epochs * -(-10 * images_a_class // 64)
    of_100 = int(2 / 3 * epochs) // 100 * 100
    assert found.length(100 * images_a_class, 100)[0] == of_100 * -(-100 * images_a_class // 64)


def test_a_length_that_is_given_holds_for_every_row():
    assert settings("minimax-hard", epochs=3).length(1000, 100) == (3 * 16, 16)
    assert settings("minimax-hard", epochs=3).length(1000, 10, full=True) == (3 * 16, 16)
    assert settings("minimax-hard", steps=7).length(1000, 10, full=True) == (7, 1)
    assert settings(epochs=2).length(100, 10) == (4, 2)


def test_steps_and_epochs_together_are_refused():
    with pytest.raises(ConfigError, match="None with steps"):
        settings(steps=3, epochs=3)


# augmentation


def test_no_mirror_image_where_flip_is_off():
    for name in NAMES:
        augmentation = settings(name, flip=False).augmentation()
        assert not augmentation.flip
        assert all("flip" not in siamese.operations for siamese in augmentation.siamese)
    dsa = settings("dsa").augmentation()
    assert not dsa.flip, "one of six operations, not every second image"
    assert "flip" in dsa.siamese[0].operations
    assert settings("idc").augmentation().flip


def test_augmentation_knows_mean_and_spread_of_the_data():
    (siamese,) = settings("dsa").augmentation(0.2, 0.4).siamese
    assert (siamese.mean, siamese.std) == (0.2, 0.4)


def test_rows_with_and_without_no_augmentation_are_refused():
    with pytest.raises(ConfigError, match="augments nothing"):
        settings(augment=(True, False))
    assert settings(augment=(True, False), shift=1).augment == (True, False)
    assert settings(augment=False).augment == (False,)
    with pytest.raises(ConfigError, match=r"evaluate\.augment"):
        settings("idc", augment=(True, True))


# as released


def test_wmdd_spares_norms_from_decay_and_tests_the_middle_of_images():
    found = settings("wmdd-soft")
    assert (found.weight_decay_on, found.test_crop) == ("weights", 224 / 256)
    for name in NAMES[:-1]:
        assert (settings(name).weight_decay_on, settings(name).test_crop) == ("all", 1.0)
    assert settings("wmdd-soft", test_crop=1.0).changed == ("test_crop",)
    with pytest.raises(ConfigError, match=r"evaluate\.test_crop"):
        settings(test_crop=1.5)


def test_the_share_of_an_image_is_what_resizing_and_cutting_shows():
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., 4:-4] = 255  # the border of 4 px is exactly what 0.875 cuts off
    assert (central_share(stripes, 0.875) == 255).all()
    assert torch.equal(central_share(stripes, 1.0), stripes)
    image = torch.arange(64).mul(4).expand(1, 1, 64, 64).to(torch.uint8)
    resize, crop = Resize(73, InterpolationMode.BICUBIC), CenterCrop(64)  # 64 of 73 px
    assert (central_share(image, 64 / 73).int() - crop(resize(image)).int()).abs().max() <= 2


@pytest.mark.slow
def test_every_row_is_tested_on_the_share():
    """The border says the wrong class; only a test of the middle is right about all images."""
    train, test = some_images(40, 1, 16), some_images(20, 2, 16)
    wrong = torch.where(test.labels == 1, 0, 255).to(torch.uint8)[:, None, None, None].expand_as(test.images).clone()
    wrong[..., 4:-4, 4:-4] = test.images[..., 4:-4, 4:-4]
    entries = [Entry(RANDOM, None, 20, (train,)), Entry(FULL, None, None, (train,))]
    config = EvaluateConfig(width=8, runs=3, steps=30, baseline_cache=None)
    half = finish(
        evaluate_entries(entries, Split(wrong, test.labels), ("dark", "bright"), replace(config, test_crop=0.5))
    )
    whole = finish(evaluate_entries(entries, Split(wrong, test.labels), ("dark", "bright"), config))
    assert [row["mean"] for row in half] == [1.0, 1.0]
    assert all(row["mean"] < 0.9 for row in whole)


# end to end


def some_images(count, seed, size=8):
    """Bright and dark ones."""
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 100, (count, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return Split((noise + 150 * labels[:, None, None, None]).to(torch.uint8), labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_protocol_evaluates_a_tiny_set(name):
    draws = tuple(some_images(6, seed) for seed in range(5))
    entries = [
        Entry(RANDOM, None, 3, draws),
        Entry("made", "refined", 3, (some_images(6, 9),), identity="abc"),
        Entry(FULL, None, None, (some_images(70, 10),)),
    ]
    config = EvaluateConfig(protocol=name, network="convnet", width=8, runs=3, labels="hard")
    config = replace(config, **({"steps": 5} if name == "gendistill" else {"epochs": 4}))
    loop = evaluate_entries(entries, some_images(20, 11), ("dark", "bright"), config)
    records = []
    try:
        while True:
            records.append(next(loop))
    except StopIteration as stop:
        rows = stop.value
    assert len(records) == 5 + 3 + 3
    for row in rows:
        assert all(0 <= a <= 1 for a in row["accuracy"])
        assert all(0 <= e <= 1 for e in row["ece"])
        assert len(row["per_class"]) == 2
        assert sum(row["per_class"]) / 2 == pytest.approx(row["mean"])
        assert row["augment"] == (name != "gendistill")
    assert [row["verdict"] == "reference" for row in rows] == [True, False, True]
    again = finish(evaluate_entries(entries, some_images(20, 11), ("dark", "bright"), config))
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in rows]
