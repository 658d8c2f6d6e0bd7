"""The engine: the same whatever is batched, shared or interrupted, and equal to a loop that goes class by class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gendistill.config import (
    Blended,
    Characteristic,
    DataConfig,
    DistillConfig,
    Features,
    Jpeg,
    MatchingConfig,
    Queue,
    Representative,
)
from gendistill.data.pixels import to_float
from gendistill.data.sources import load_data
from gendistill.errors import ArtifactError, DivergenceError
from gendistill.io import WorkFolder, read_tensors, write_tensors
from gendistill.matching.build import build
from gendistill.matching.distiller import match
from gendistill.matching.engine import Matcher
from gendistill.matching.methods import Run, plan_runs
from gendistill.matching.synthetic import of_set
from gendistill.progress import finish
from gendistill.registry import DISTILLERS
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.set import SurrogateSet

TINY = MatchingConfig(width=8, real_batch=6, train_steps=2, inner_steps=2)
METHODS = [name for name in DISTILLERS.names() if "matching" in DISTILLERS[name].sections]
SELECTIONS = {"random": "random", "representative": Representative(candidates=20, dimensions=16)}


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(max_per_class=24)).for_classes(tuple("01234"))


def one_run(data, method, ipc=1, selection="random", iterations=2, **changes):
    config = replace(TINY, selection=SELECTIONS[selection], **changes)
    if method in ("dm", "idm", "cf"):
        config = replace(config, inner_steps=None)
    if method in ("dm", "cf"):
        config = replace(config, train_steps=None)
    if method == "cf":
        config = replace(config, networks=Blended(pool_size=2, pool_steps=2), objective=Characteristic(frequencies=16))
    options = DistillConfig(method=method, ipc=ipc, iterations=iterations, matching=config)
    (found,) = plan_runs(options, data)
    return found


def matcher(data, run: Run, seed=0) -> Matcher:
    return build(data, run, seed=seed)


def images(data, run, seed=0):
    return [one.images for one in finish(matcher(data, run, seed).run())]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_images_move_and_repeat_for_a_seed(data, method):
    run = one_run(data, method)
    begun = matcher(data, run).sets[0].images
    (found,) = images(data, run)
    assert found.isfinite().all()
    assert not torch.equal(found, begun)
    assert torch.equal(found, images(data, run)[0])
    assert not torch.equal(found, images(data, run, seed=1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("method", ["dm", "idc", "idm"])
def test_sets_that_share_a_run_are_what_they_are_alone(data, method, selection):
    changes = {"factor": 1, "train_steps": None} if method != "idc" else {}
    changes |= {"real_batch": 6}
    if method == "idm":
        changes |= {"objective": Features(class_aware=0.5), "networks": Queue(interval=2)}
    both = one_run(data, method, (1, 2), selection, **changes)
    assert both.ipcs == (1, 2)
    together = images(data, both)
    for place, ipc in enumerate((1, 2)):
        (alone,) = images(data, one_run(data, method, ipc, selection, **changes))
        assert torch.equal(together[place], alone)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dm", "idc"])
def test_sets_of_other_starts_share_a_real_side(data, method):
    run = one_run(data, method)
    together, starts = matcher(data, run), [matcher(data, run, seed=seed).sets[0] for seed in (0, 7)]
    engine = replace(together, sets=starts, plan=replace(together.plan, learning_rates=run.rates * 2))
    found = [one.images for one in finish(engine.run())]
    for start, images_ in zip(starts, found, strict=True):
        alone = replace(matcher(data, run), sets=[start])
        assert torch.equal(finish(alone.run())[0].images, images_)


def test_networks_that_learn_from_the_surrogate_serve_one_set(data):
    options = DistillConfig(method="dc", ipc=(1, 2), iterations=1, matching=TINY)
    assert [run.ipcs for run in plan_runs(options, data)] == [(1,), (2,)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_resume_gives_the_same_images(data, method, selection):
    run = one_run(data, method, selection=selection, iterations=3)
    whole = images(data, run)
    first = matcher(data, run)
    for record in first.run():
        if record["done"] and first.iteration == 2:
            break
    state = {name: value.clone() for name, value in first.state_dict().items()}
    second = matcher(data, run)
    second.load_state_dict(state)
    assert torch.equal(finish(second.run())[0].images, whole[0])


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "learning_rate": 0.01}], ids=["sgd", "adam"])
def test_a_state_and_the_images_of_a_run_stay_as_they_were(data, options):
    run = one_run(data, "dm", iterations=3, **options)
    first = matcher(data, run)
    next(record for record in first.run() if record["done"])
    state = first.state_dict()
    whole, again = finish(first.run()), matcher(data, run)
    again.load_state_dict(state)
    assert torch.equal(finish(again.run())[0].images, whole[0].images), "the first run changed its state"
    third = matcher(data, run)
    third.load_state_dict(state)
    assert torch.equal(finish(third.run())[0].images, whole[0].images), "the second run changed what it had loaded"
    before = whole[0].images.clone()
    first.load_state_dict(state)
    assert torch.equal(whole[0].images, before)


def test_of_many_views_as_many_as_said_take_part_drawn_anew(data):
    engine = matcher(data, one_run(data, "idc", 2, factor=2, most_views=3))
    stored = engine.sets[0]
    own = stored.decoded(stored.images.split(stored.ipc)[4])
    views = [engine._views(own, 4, inner) for inner in (0, 0, 1)]
    assert all(len(some) == 3 for some in views)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    whole = own.flatten(1)
    assert (torch.cdist(views[0].flatten(1), whole).min(1).values < 1e-5).all()


def test_a_state_of_other_sets_is_refused(data):
    made = matcher(data, one_run(data, "dm"))
    finish(made.run())
    state = made.state_dict()
    with pytest.raises(ArtifactError, match="other sets"):
        matcher(data, one_run(data, "dm", 2)).load_state_dict(state)
    del state["0.optimizer.0.momentum_buffer"]
    with pytest.raises(ArtifactError, match="lacks the momentum of the images"):
        matcher(data, one_run(data, "dm")).load_state_dict(state)


@pytest.mark.parametrize("change", ["missing", "longer", "of no network"])
def test_a_checkpoint_of_other_networks_is_one_message(data, tmp_path, change):
    run = one_run(data, "idm", checkpoint_every=1)
    folder = WorkFolder(tmp_path, tmp_path / "log.jsonl")
    match(data, run, seed=0, folder=folder)
    (path,) = tmp_path.rglob("state.safetensors")
    state, metadata = read_tensors(path, fix="")
    part = ".network." if change == "missing" else ".training."
    name = next(name for name in state if part in name and state[name].ndim)
    value = state.pop(name)
    if change == "longer":
        state[name] = torch.cat([value, value])
    if change == "of no network":
        state |= {name: value, name.replace("optimizer.", "optimizer.99"): value.clone()}
    write_tensors(path, state, metadata)
    with pytest.raises(ArtifactError, match="does not hold the state of this training"):
        match(data, run, seed=0, folder=folder)


def test_the_joint_step_equals_steps_after_each_class(data):
    """One optimiser over all images and a step after each class: gradients, hence losses, are the same ones."""
    run = one_run(data, "idc", iterations=1, inner_steps=4, train_steps=0, factor=1, learning_rate=0.05)
    joint = matcher(data, run)
    records = [record["loss"] for record in joint.run()]
    slow = matcher(data, run)
    leaf = slow.sets[0].images.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=slow.plan.learning_rates[0], momentum=slow.plan.momentum)
    network = slow.supply.network(0)
    for inner in range(4):
        picks, found = slow.selection.picks(network, 0, inner), []
        for label in range(len(data.classes)):
            draw = slow._draw(inner, label)
            real = [draw.apply(to_float(slow.real.images[picks[label]]))]
            views = [draw.apply(slow.sets[0].decoded(leaf.split(slow.sets[0].ipc)[label]))]
            loss = slow.objective.prepared(network, real, [label]).losses(views).sum()
            optimizer.zero_grad(set_to_none=False)
            (leaf.grad,) = torch.autograd.grad(loss, leaf)
            optimizer.step()
            found.append(loss.detach())
        assert torch.allclose(torch.stack(found).mean(), records[inner], rtol=1e-4)
    assert not torch.allclose(records[0], records[-1], rtol=1e-3)


@pytest.mark.parametrize("method", ["dm", "dc"])
def test_images_that_diverge_say_when_and_what_to_change(data, method):
    run = one_run(data, method, iterations=12, learning_rate=1e38)
    with pytest.raises(
        DivergenceError, match=rf"{method} random ipc 1 diverged: loss is .* at step 10 of .*learning_rate"
    ):
        match(data, run, seed=0)


@pytest.mark.parametrize("factor", [1, 2, (1, 2)])
def test_networks_see_the_views_of_the_files(data, factor):
    coding = Coding.of(Jpeg(quality=20))
    one = replace(matcher(data, one_run(data, "idc", 2, factor=2)).sets[0], factor=factor)
    made = SurrogateSet(one.stored(), one.labels, data.classes, factor=factor).stored_as(Jpeg(quality=20))
    again = replace(one, images=of_set(made, data, 2, factor).images)  # as a run that starts from the stored set
    seen = replace(one, coding=coding).decoded(one.images)
    assert torch.equal(seen, again.decoded(again.images))
    if factor == 1:
        torch.testing.assert_close(seen, to_float(made.images))
    leaf = one.images.clone().requires_grad_()
    weights = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
    coded, plain = (torch.autograd.grad((weights * s.decoded(leaf)).sum(), leaf)[0] for s in (again, one))
    (found,) = torch.autograd.grad((weights * replace(one, coding=coding).decoded(leaf)).sum(), leaf)
    inside = (leaf > 0.01) & (leaf < 0.99)
    torch.testing.assert_close(found[inside], plain[inside])
    torch.testing.assert_close(coded, plain)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dm", "dc", "idc"])
def test_coded_steps_move_images_otherwise_and_go_on_from_a_checkpoint(data, method):
    coding, run = Coding.of(Jpeg(quality=5)), one_run(data, method, iterations=3)
    whole = finish(build(data, run, seed=0, coding=coding).run())[0].images
    assert not torch.equal(whole, images(data, run)[0])
    first = build(data, run, seed=0, coding=coding)
    for record in first.run():
        if record["done"] and first.iteration == 2:
            break
    second = build(data, run, seed=0, coding=coding)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert torch.equal(finish(second.run())[0].images, whole)
    if method == "dc":
        classes = replace(run, config=replace(run.config, classes_per_chunk=3))
        apart = finish(build(data, classes, seed=0, coding=coding).run())[0].images
        torch.testing.assert_close(apart, whole, atol=2e-2, rtol=0)


def test_sets_of_other_codings_share_a_real_side(data):
    run = one_run(data, "dm", (1, 2))
    assert run.ipcs == (1, 2)
    coding = Coding.of(Jpeg(quality=5))
    together = [one.images for one in finish(build(data, run, seed=0, coding=coding).run())]
    for place, ipc in enumerate((1, 2)):
        alone = build(data, one_run(data, "dm", ipc), seed=0, coding=coding)
        assert torch.equal(finish(alone.run())[0].images, together[place])


def test_checkpoints_of_another_coding_are_refused(data, tmp_path):
    run, work = one_run(data, "dm", iterations=2, checkpoint_every=1), WorkFolder(tmp_path, tmp_path / "log.jsonl")
    coding = Coding.of(Jpeg(quality=5))
    (made,) = match(data, run, seed=0, folder=work, coding=coding)
    assert made.meta["compression_aware"] == coding.record()
    (again,) = match(data, run, seed=0, folder=work, coding=coding)
    assert torch.equal(again.images, made.images)
    with pytest.raises(ArtifactError, match="belongs to another training"):
        match(data, run, seed=0, folder=work)
