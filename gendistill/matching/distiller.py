"""The matching methods (dc, dsa, dm, idc, dream, idm, cf): starts, a run with checkpoints and snapshots, sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from gendistill.config import DistillConfig, ImageFormat, MatchingStart, kind_of, to_dict
from gendistill.data.dataset import RealData, Split, check_origin
from gendistill.errors import ArtifactError, ConfigError
from gendistill.hashing import hash_json
from gendistill.io import WorkFolder, atomic, partial_of
from gendistill.matching.build import build
from gendistill.matching.engine import Matcher
from gendistill.matching.methods import Run, filled, plan_runs
from gendistill.progress import note, step_bar
from gendistill.runtime import Checkpoints, CheckpointTimer, processes, refuse_divergence, restoring
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.manifest import AS_DATA, own_seconds, provenance, with_step_coding
from gendistill.surrogate.set import SurrogateSet

SNAPSHOTS, PREVIEWS, CHECKPOINTS = "snapshots", "previews", "checkpoints"

Draw = Callable[[Split, Sequence[str], str], Image.Image]  # a contact sheet of images, with a title


def _save_preview(made: SurrogateSet, folder: WorkFolder, draw: Draw | None) -> None:
    """A contact sheet of the stored images, a row a class."""
    if draw is None:
        return
    path = folder.path / PREVIEWS / f"ipc-{made.ipc}" / f"{_name(made)}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [str(made.meta[key]) for key in ("method", "space") if made.meta[key]]
    title = f"{', '.join(names)}: IPC {made.ipc}, iteration {made.meta['iterations']:,}"
    with atomic(path) as part:
        draw(Split(made.images, made.labels), made.classes, title).save(part, "PNG")


def save_whole(made: SurrogateSet, target: Path) -> None:
    """Whole or not at all; one that a resumed run made before it was cut short stays."""
    if not target.exists():
        partial = partial_of(target)
        shutil.rmtree(partial, ignore_errors=True)
        made.save(partial)
        partial.rename(target)


def _name(made: SurrogateSet) -> str:
    return f"iteration-{made.meta['iterations']:06d}"


def match(
    data: RealData,
    run: Run,
    *,
    seed: int,
    given: SurrogateSet | None = None,
    folder: WorkFolder | None = None,
    draw: Draw | None = None,
    image_format: ImageFormat = "png",
    coding: Coding | None = None,
) -> list[SurrogateSet]:
    """The surrogate sets of one run; with a ``folder`` it continues from the newest checkpoint there.

    Of several processes the main one alone writes. Snapshots are stored in ``image_format``. With a ``coding`` every
    step sees the images as its files hold them; the sets are not coded yet.
    """
    label = f"{run.method} {kind_of(run.config.selection)} ipc {','.join(map(str, run.ipcs))}"
    matcher = build(data, run, seed=seed, given=given, coding=coding)
    checkpoints = _checkpoints(folder, run, data, seed, coding)
    origin, every = given.content_hash() if given else None, run.config.snapshot_every
    fields: dict[str, Any] = {"stage": run.method, "ipc": list(run.ipcs)}
    found = checkpoints.latest() if checkpoints else None
    if checkpoints and found:
        with restoring(checkpoints.file(found[0])):
            matcher.load_state_dict(found[1])
    if not processes().is_main_process:
        folder = None
    if found and folder:  # what follows replaces what the log has of later iterations
        folder.log({**fields, "resumed_at": matcher.iteration})
    if run.fast.compile:
        note(f"{label}: the first steps compile, for up to a minute")

    def made() -> list[SurrogateSet]:
        _refuse_divergence(matcher, run)
        return [_surrogate(data, run, place, matcher, seed, given, origin) for place in range(len(run.ipcs))]

    def snapshots() -> None:
        if folder and every and matcher.iteration % every == 0:
            for one in made():
                save_whole(one.stored_as(image_format), folder.path / SNAPSHOTS / _name(one) / f"ipc-{one.ipc}")
                _save_preview(one, folder, draw)

    if matcher.iteration == 0:
        snapshots()
    timer, steps = CheckpointTimer(matcher.iteration), run.iterations * matcher.plan.inner_steps
    done = matcher.iteration * matcher.plan.inner_steps
    log, advice = folder.log if folder else None, _advice(run)
    with step_bar(label, steps, start=done, log=log, remedy=advice, **fields) as show:
        for record in matcher.run():
            between = record.pop("done") and matcher.iteration < run.iterations
            show(record)  # before a checkpoint says that this was done
            if between:
                snapshots()
            number = matcher.iteration
            if between and checkpoints and folder and (number % checkpoints.every == 0 or timer.is_due(number)):
                _refuse_divergence(matcher, run)
                checkpoints.save(matcher.iteration, matcher.state_dict())
                timer.restart(number)
    sets = made()
    if folder and every:
        for one in sets:
            _save_preview(one, folder, draw)
    return sets


def _advice(run: Run) -> str:
    return (
        f"Lower --matching.learning_rate ({run.config.learning_rate:g}) or, where networks learn, train_learning_rate "
        f"({filled(run.config.train_learning_rate):g}), or take --matching.mixed_precision no."
    )


def _refuse_divergence(matcher: Matcher, run: Run) -> None:
    what = f"After {matcher.iteration} iterations the images of {run.method} are"
    refuse_divergence(what, (one.images for one in matcher.sets), _advice(run))


def _checkpoints(
    folder: WorkFolder | None, run: Run, data: RealData, seed: int, coding: Coding | None
) -> Checkpoints | None:
    if folder is None:
        return None
    every = filled(run.config.checkpoint_every)
    settings = to_dict(run.flat | {"checkpoint_every": None})  # how often a run is saved does not change it
    own = [run.method, kind_of(run.config.selection), settings, list(run.ipcs), seed]
    identity = {"run": hash_json(own + ([coding.record()] if coding else [])), "data": data.fingerprint()}
    name = "-".join(["ipc", *map(str, run.ipcs)])
    return Checkpoints(folder.path / CHECKPOINTS / name, every, 1, identity)


def _surrogate(
    data: RealData,
    run: Run,
    place: int,
    matcher: Matcher,
    seed: int,
    given: SurrogateSet | None,
    origin: str | None,
) -> SurrogateSet:
    one, seconds, selection = matcher.sets[place], matcher.clock.seconds(), kind_of(run.config.selection)
    meta = provenance(
        run.method,
        seed=seed,
        data=data.describe(),
        seconds={"distill": sum(seconds.values()), **seconds},
        licence=given.meta.get("licence", AS_DATA) if given else AS_DATA,
        space=selection if selection != "random" else None,
        iterations=matcher.iteration,
        matching=_resolved(run, place),
    )
    meta = with_step_coding(meta, one.coding)
    if given and origin:
        meta["start"] = origin
        meta["shared_seconds"] = _time_of_start(given)
    return SurrogateSet(one.stored(), one.labels, data.classes, meta, one.factor)


def _time_of_start(given: SurrogateSet) -> dict[str, float]:
    """Seconds of all that the set to start from needed, as far as it knows them; its soft labels are not used."""
    own, shared = own_seconds(given.meta, labels=False), given.meta.get("shared_seconds", {})
    known = {} if own is None else {"start_set": round(own + shared.get("start_set", 0), 2)}
    return {part: seconds for part, seconds in shared.items() if part not in ("label_teacher", "start_set")} | known


def _resolved(run: Run, place: int) -> dict[str, object]:
    """Every option that decides the images as it was resolved, and their rate; a set to start from is named by its
    hash elsewhere."""
    found = {k: v for k, v in to_dict(run.flat).items() if k not in ("checkpoint_every", "snapshot_every")}
    fast = {"mixed_precision": "bf16" if run.fast.bf16 else "no", "compile": run.fast.compile}
    options = found | fast | {"image_rate": run.rates[place]}
    return options | ({"start": "set"} if isinstance(run.config.start, Path) else {})


def start_set(config: DistillConfig, data: RealData) -> SurrogateSet | None:
    """The surrogate set that matching starts from, where one is given.

    Raises:
        ConfigError: there is no such folder.
        ArtifactError: it is made of other classes, or of images that are test images here.
    """
    place = config.matching.start
    if not isinstance(place, Path):
        return None
    if not place.exists():
        raise ConfigError(
            f"matching.start is {str(place)!r}, which is no folder; expected {', '.join(get_args(MatchingStart))} or "
            "the folder of a surrogate set."
        )
    given = SurrogateSet.load(place)
    what = f"the set {place}"
    check_origin(what, given.classes, given.meta, data)
    if given.weights is not None:
        raise ArtifactError(f"{what} has weights of its images, which matching would lose; expected a set without.")
    return given


def matched(
    data: RealData,
    config: DistillConfig,
    *,
    seed: int = 0,
    given: SurrogateSet | None = None,
    folder: WorkFolder | None = None,
    draw: Draw | None = None,
) -> Iterator[SurrogateSet]:
    """A set for each of ``config.ipc`` by method dc, dsa, dm, idc, dream, idm or cf; those that can share a run do.

    Args:
        data: The real images, of which ``data.train`` is matched.
        config: The method, its options (null is the method's value) and the numbers of images per class.
        seed: Of everything random.
        given: The set to start from, as ``start_set`` reads it.
        folder: Where checkpoints and snapshots go; a killed run continues from the newest checkpoint there.
        draw: Draws the previews of snapshots.

    Raises:
        ConfigError: options that do not go together, or that would do nothing.
        DataError: a class without an image.
        DivergenceError: a loss or images that are no longer finite.
    """
    stored, coding = config.image_format, Coding.of_steps(config.step_format, data.image_size)
    for run in plan_runs(config, data):
        yield from match(
            data, run, seed=seed, given=given, folder=folder, draw=draw, image_format=stored, coding=coding
        )
