"""The matching back-ends (dc, dsa, dm, idc, idm) as a stage: starts, a run with checkpoints and snapshots, sets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from gendistill import runtime
from gendistill.config import (
    DistillConfig,
    MatchingConfig,
    MatchingMethod,
    MatchingStart,
    SelectionKind,
    as_tuple,
    need,
    sizes,
    to_dict,
)
from gendistill.data.real import RealData, Split, mean_and_std
from gendistill.data.siamese import Siamese
from gendistill.errors import ArtifactError, ConfigError, DataError
from gendistill.hashing import hash_json
from gendistill.matching.distribution import FeatureMatching
from gendistill.matching.engine import Matcher, Objective, Plan
from gendistill.matching.gradient import GradientMatching
from gendistill.matching.idle import GRADIENT, check_used
from gendistill.matching.presets import PUBLISHED_ITERATIONS, Images, image_rate, resolve
from gendistill.matching.selection import RandomSelection, RepresentativeSelection, Selection
from gendistill.matching.starts import of_set, starts
from gendistill.matching.supply import Fresh, Queue, Supply, Training
from gendistill.networks.cost import BACKWARD, training_flop
from gendistill.networks.registry import batch_norm_layers, build_network
from gendistill.progress import follow, note
from gendistill.runtime import Checkpoints
from gendistill.stages.folders import StageFolder, check_origin, command_line, versions
from gendistill.stages.snapshots import save_preview, save_snapshot
from gendistill.surrogate.decode import Factor, sides, views_in
from gendistill.surrogate.surrogate import SurrogateSet

CHECKPOINTS = "checkpoints"
MOST_LOST = 60.0  # seconds of work without a checkpoint, but for one iteration
GPU_CLASSES = 10  # of a gradient's pass; batches of one class leave a GPU idle
MATCHING: tuple[str, ...] = get_args(MatchingMethod)


@dataclass(frozen=True)
class Run:
    """One trajectory: the sets that share its networks, with the options all of them have."""

    method: MatchingMethod
    selection: SelectionKind
    iterations: int
    config: MatchingConfig
    ipcs: tuple[int, ...]
    rates: tuple[float, ...]
    fast: runtime.Fast


def plan_runs(config: DistillConfig, data: RealData) -> list[Run]:
    """Sets whose options are the same share a run, unless networks learn from the set itself."""
    method = cast(MatchingMethod, config.method)
    counts = data.train.labels.bincount(minlength=len(data.classes))
    images = Images(data.channels, data.image_size, len(data.classes), int(counts.min()))
    iterations = config.iterations or PUBLISHED_ITERATIONS[method]
    resolved, presets = (
        [resolve(method, options, ipc, images, config.selection) for ipc in sizes(config.ipc)]
        for options in (config.matching, MatchingConfig(real_batch=config.matching.real_batch))
    )
    check_used(method, config.selection, config.matching, resolved, presets)
    runs: dict[str, Run] = {}
    for ipc, own in zip(sizes(config.ipc), resolved, strict=True):
        _check(method, own, data.image_size)
        if config.selection == "representative":
            _check_choice(own, int(counts.max()))
        rate = image_rate(method, own, ipc, images)
        alone = ipc if own.train_on == "surrogate" else None
        key = hash_json([to_dict(own), alone])
        found = runs.get(key)
        if found is None:
            fast = _fast(method, own, iterations, data, int(counts.max()))
            found = Run(method, config.selection, iterations, own, (), (), fast)
        runs[key] = replace(found, ipcs=(*found.ipcs, ipc), rates=(*found.rates, rate))
    return list(runs.values())


def _fast(method: MatchingMethod, own: MatchingConfig, iterations: int, data: RealData, largest: int) -> runtime.Fast:
    """By the work on real images, which the sets of a run share; no class has more than ``largest``."""
    device = runtime.device()
    if "auto" not in (own.mixed_precision, own.compile):
        return runtime.fast(own.mixed_precision, own.compile, device)
    seen = min(_set(own.real_batch), largest) * len(data.classes) / (1 if method in GRADIENT else 1 + BACKWARD)
    networks = 2 if method == "idm" else 0 if own.train_on == "none" else 1
    trained = networks * _set(own.train_steps) * _set(own.train_batch)
    images = iterations * _set(own.inner_steps) * (seen + trained)
    flop = training_flop(_network(data, own, 0), data.channels, data.image_size, images)
    return runtime.fast(own.mixed_precision, own.compile, device, flop)


def _network(data: RealData, config: MatchingConfig, seed: int) -> nn.Module:
    return build_network(
        config.network,
        channels=data.channels,
        image_size=data.image_size,
        classes=len(data.classes),
        width=config.width,
        depth=config.depth,
        seed=seed,
    )


def _check(method: MatchingMethod, config: MatchingConfig, size: int) -> None:
    queue, factor = method == "idm", formation(config)
    few, batch = _set(config.candidates), _set(config.real_batch)
    need(few == 0 or few >= batch, "matching.candidates", few, f"0 or at least real_batch = {batch}")
    need(
        batch % config.per_cluster == 0,
        "matching.per_cluster",
        config.per_cluster,
        f"a divisor of {batch} (real_batch)",
    )
    need(max(sides(factor)) <= size, "matching.factor", factor, f"1 to {size} for images of {size}x{size} px")
    if queue and (config.train_on != "none" or config.inner_steps != 1):
        raise ConfigError("matching.train_on and inner_steps belong to methods with fresh networks; idm has its queue.")
    need(not queue or config.train_steps != 0, "matching.train_steps", 0, "at least 1, or no network would learn")
    if queue and not config.queue_size:
        raise ConfigError("matching.queue_size is 0; expected at least 1 network.")
    if config.train_on == "surrogate" and config.warm_steps:
        raise ConfigError("matching.warm_steps is on real images; expected 0 with train_on surrogate.")


def _check_choice(config: MatchingConfig, largest: int) -> None:
    """Refuse a batch that leaves representative selection nothing to choose."""
    expected = f"below {largest}, the images of the largest class, with selection representative, or selection random"
    need(_set(config.real_batch) < largest, "matching.real_batch", config.real_batch, expected)


def formation(config: MatchingConfig) -> Factor:
    """The factor of resolved options, or several in ascending order."""
    found = tuple(sorted(as_tuple(_set(config.factor))))
    return found if len(found) > 1 else found[0]


def match(
    data: RealData,
    run: Run,
    *,
    seed: int,
    given: SurrogateSet | None = None,
    folder: StageFolder | None = None,
) -> list[SurrogateSet]:
    """The surrogate sets of one run; with a ``folder`` it goes on from the newest checkpoint there."""
    label = f"{run.method} {run.selection}"
    matcher = build(data, run, seed=seed, given=given)
    checkpoints = _checkpoints(folder, run, data, seed)
    found = checkpoints.latest() if checkpoints else None
    if found:
        matcher.load_state_dict(found[1])
    if run.fast.compile:
        note(f"{label}: the first steps compile, for up to a minute")
    steps = run.iterations * matcher.plan.inner_steps
    loop = _kept(matcher, run, data, checkpoints, folder, seed, given)
    log = folder.log if folder else None
    follow(loop, label, steps, start=matcher.iteration * matcher.plan.inner_steps, log=log, stage=run.method)
    made = [_surrogate(data, run, place, matcher, seed, given) for place in range(len(run.ipcs))]
    for one in made:
        if folder and run.config.snapshot_every:
            save_preview(one, folder.path)
    return made


def _kept(
    matcher: Matcher,
    run: Run,
    data: RealData,
    checkpoints: Checkpoints | None,
    folder: StageFolder | None,
    seed: int,
    given: SurrogateSet | None,
) -> Any:
    """The matcher's records, with checkpoints and snapshots between its iterations."""

    def snapshots() -> None:
        every, done = run.config.snapshot_every, matcher.iteration
        if folder and every and done % every == 0:
            for place in range(len(run.ipcs)):
                save_snapshot(_surrogate(data, run, place, matcher, seed, given), folder.path)

    if matcher.iteration == 0:
        snapshots()
    saved = time.monotonic()
    for record in matcher.run():
        done = matcher.iteration
        if record.pop("done") and done < run.iterations:
            snapshots()
            if checkpoints and (done % checkpoints.every == 0 or time.monotonic() - saved > MOST_LOST):
                _require_finite(matcher, run)
                checkpoints.save(done, matcher.state_dict())
                saved = time.monotonic()
        yield record
    return matcher.sets


def _require_finite(matcher: Matcher, run: Run) -> None:
    if not all(bool(one.images.isfinite().all()) for one in matcher.sets):
        raise DataError(
            f"The images of {run.method} are not finite after {matcher.iteration} iterations; expected numbers. Lower "
            f"--matching.learning_rate ({run.config.learning_rate:g}) or, where networks learn, train_learning_rate "
            f"({run.config.train_learning_rate:g}), or take --matching.mixed_precision no."
        )


def _checkpoints(folder: StageFolder | None, run: Run, data: RealData, seed: int) -> Checkpoints | None:
    if folder is None:
        return None
    every = _set(run.config.checkpoint_every)
    settings = to_dict(replace(run.config, checkpoint_every=None))  # how often a run is saved does not change it
    identity = {"run": hash_json([run.method, run.selection, settings, list(run.ipcs), seed])}
    identity["data"] = data.fingerprint()
    name = "-".join(["ipc", *map(str, run.ipcs)])
    return Checkpoints(folder.path / CHECKPOINTS / name, every, 1, identity)


def build(data: RealData, run: Run, *, seed: int, given: SurrogateSet | None = None) -> Matcher:
    """The engine with this run's choices, at its start."""
    begun, config, device = time.perf_counter(), run.config, runtime.device()
    layout = torch.channels_last if any(run.fast) else torch.contiguous_format

    def network(number: int) -> nn.Module:
        return _network(data, config, number).to(device).to(memory_format=layout)

    counts = data.train.labels.bincount(minlength=len(data.classes)).tolist()
    empty = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(f"Class {empty[0]!r} has no training image; expected at least one of every class.")
    _check_statistics(run, data, network)
    real = Split(data.train.images.to(device), data.train.labels.to(device))
    factor = formation(config)
    if given:
        sets = [of_set(given, data, ipc, factor) for ipc in run.ipcs]
    else:
        sets = starts(data, run.ipcs, factor, _set(config.start), network, seed=seed)
    matcher = Matcher(
        sets=sets,
        real=real,
        objective=_objective(run),
        selection=_selection(run, data, seed),
        supply=_supply(run, data, real, network, seed),
        augmentation=_augmentation(config, data.train, matching=True),
        plan=Plan(
            iterations=run.iterations,
            inner_steps=_set(config.inner_steps),
            learning_rates=run.rates,
            momentum=config.momentum,
            by_class=run.method in ("idc", "idm"),
            most_views=config.most_views or None,
        ),
        seed=seed,
    )
    matcher.clock.add({"start": time.perf_counter() - begun})
    return matcher


def _check_statistics(run: Run, data: RealData, network: Any) -> None:
    """Refuse batch norm where it would have one value a channel to take its statistics of."""
    config, real = run.config, int(data.train.labels.bincount(minlength=len(data.classes)).min())
    batches = {"images a training step (train_batch)": _set(config.train_batch)}
    if run.method != "idm":  # it matches in evaluation mode
        views = min(run.ipcs) * views_in(formation(config))
        batches["view of a class (ipc x factor^2)"] = min(views, config.most_views or views)
        batches["real image of a class (real_batch)"] = min(real, _set(config.real_batch))
    if min(batches.values()) > 1 or not batch_norm_layers(probed := network(0)):
        return
    try:
        with torch.no_grad():
            probed.train()(torch.zeros(1, data.channels, data.image_size, data.image_size, device=runtime.device()))
    except ValueError as error:
        what = next(name for name, count in batches.items() if count == 1)
        raise ConfigError(
            f"{config.network} takes batch norm's statistics of 1 {what}, whose last maps have one position at "
            f"{data.image_size} px; expected 2 or more. Raise ipc or that option, or take a --matching.network without "
            "batch norm, such as convnet or resnet10."
        ) from error


def _objective(run: Run) -> Objective:
    config = run.config
    fast: dict[str, Any] = {**run.fast._asdict(), "channels_last": any(run.fast)}
    if run.method in GRADIENT:
        return GradientMatching(
            distance=_set(config.distance),
            parameters="all" if config.match_head else "no_head",
            feature_mean=_set(config.feature_weight),
            classes_per_chunk=config.classes_per_chunk or (1 if runtime.device().type == "cpu" else GPU_CLASSES),
            **fast,
        )
    return FeatureMatching(ce_weight=_set(config.class_aware), classes_per_chunk=config.classes_per_chunk, **fast)


def _selection(run: Run, data: RealData, seed: int) -> Selection:
    config, classes = run.config, len(data.classes)
    batch = _set(config.real_batch)
    if run.selection == "random":
        return RandomSelection(data.train, classes, batch, seed)
    return RepresentativeSelection(
        data.train,
        classes,
        batch,
        seed,
        interval=_set(config.interval),
        per_cluster=config.per_cluster,
        weights=config.cluster_weights,
        candidates=config.candidates or None,
        dimensions=config.dimensions or None,
        **run.fast._asdict(),
    )


def _supply(run: Run, data: RealData, real: Split, network: Any, seed: int) -> Supply:
    config = run.config
    training = Training(
        classes=len(data.classes),
        batch_size=_set(config.train_batch),
        learning_rate=config.train_learning_rate,
        augmentation=None if run.method == "idm" else _augmentation(config, data.train, matching=False),
        cutmix=_set(config.cutmix),
        bf16=run.fast.bf16,
        compile=run.fast.compile,
        **({"momentum": 0.0, "weight_decay": 0.0} if run.method in ("dc", "dsa") else {}),
    )
    if run.method == "idm":
        return Queue(
            network,
            training,
            real,
            steps=_set(config.train_steps),
            size=_set(config.queue_size),
            interval=_set(config.queue_interval),
            seed=seed,
            most_steps=config.queue_most_steps or None,
        )
    source = _set(config.train_on)
    return Fresh(network, training, source, real, _set(config.train_steps), seed, _set(config.warm_steps))


def _augmentation(config: MatchingConfig, split: Split, *, matching: bool) -> Siamese | None:
    """DSA's, one of the operations a step, or IDC's, all in order; cutout is for matching alone (IDC)."""
    if config.augmentation == "none":
        return None
    mean, std = mean_and_std(split)
    scale: dict[str, Any] = {"mean": mean, "std": std}
    flip: tuple[Any, ...] = ("flip",) if config.flip else ()
    if config.augmentation == "one":
        return Siamese(operations=("color", "crop", "cutout", *flip, "scale", "rotate"), compose="one", **scale)
    return Siamese(operations=(*flip, "color", "crop", *(("cutout",) if matching else ())), compose="all", **scale)


def _set(value: Any) -> Any:
    """An option that ``resolve`` has filled."""
    assert value is not None
    return value


def _surrogate(
    data: RealData, run: Run, place: int, matcher: Matcher, seed: int, given: SurrogateSet | None
) -> SurrogateSet:
    _require_finite(matcher, run)
    one, seconds = matcher.sets[place], matcher.clock.seconds()
    meta: dict[str, Any] = {
        "method": run.method,
        "stages": [],
        "stage": None,
        "space": run.selection if run.selection != "random" else None,
        "seed": seed,
        "iterations": matcher.iteration,
        "matching": _told(run, place),
        "data": data.describe(),
        "licence": given.meta.get("licence", "as the data") if given else "as the data",
        "seconds": {name: round(value, 2) for name, value in {"distill": sum(seconds.values()), **seconds}.items()},
        "command": command_line(),
        "versions": versions(),
    }
    if given:
        meta["start"] = given.content_hash()
    labels: Tensor = one.labels
    return SurrogateSet(one.stored(), labels, data.classes, meta, one.factor)


def _told(run: Run, place: int) -> dict[str, Any]:
    """Every option that decides the images as it was resolved, and their rate; a set to start from is named by its
    hash elsewhere."""
    told = {k: v for k, v in to_dict(run.config).items() if k not in ("checkpoint_every", "snapshot_every")}
    fast = {"mixed_precision": "bf16" if run.fast.bf16 else "no", "compile": run.fast.compile}
    options = told | fast | {"image_rate": run.rates[place]}
    return options | ({"start": "set"} if isinstance(run.config.start, Path) else {})


def start_set(config: DistillConfig, data: RealData) -> SurrogateSet | None:
    """The surrogate set that matching starts from, where one is given.

    Raises:
        ConfigError: there is no such folder.
        ArtifactError: it is made of other classes, or of images that are test images here.
    """
    place = config.matching.start
    if config.method not in MATCHING or not isinstance(place, Path):
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
    need(max(sizes(config.ipc)) <= min(given.counts), "ipc", config.ipc, f"at most {min(given.counts)}, as {what} has")
    return given


def matched(
    data: RealData,
    config: DistillConfig,
    *,
    seed: int = 0,
    given: SurrogateSet | None = None,
    folder: StageFolder | None = None,
) -> Iterator[SurrogateSet]:
    """Every set of the config; those that can share a run do."""
    for run in plan_runs(config, data):
        yield from match(data, run, seed=seed, given=given, folder=folder)
