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
from gendistill.config import DistillConfig, MatchingConfig, MatchingMethod, SelectionKind, need, sizes, to_dict
from gendistill.data.real import RealData, Split
from gendistill.data.siamese import Siamese
from gendistill.errors import ArtifactError, ConfigError
from gendistill.hashing import hash_json
from gendistill.matching.distribution import FeatureMatching
from gendistill.matching.engine import Matcher, Objective, Plan
from gendistill.matching.gradient import GradientMatching
from gendistill.matching.presets import PUBLISHED_ITERATIONS, Images, image_rate, resolve
from gendistill.matching.selection import RandomSelection, RepresentativeSelection, Selection, clustered_start, embed
from gendistill.matching.stored import Stored, noise, of_images, of_picks
from gendistill.matching.supply import Fresh, Queue, Supply, Training
from gendistill.networks.registry import build_network
from gendistill.progress import follow
from gendistill.runtime import Checkpoints
from gendistill.seeding import derive, torch_rng
from gendistill.stages.folders import StageFolder, check_origin, command_line, versions
from gendistill.surrogate.surrogate import SurrogateSet

CHECKPOINTS, SNAPSHOTS = "checkpoints", "snapshots"
MATCHING: tuple[str, ...] = get_args(MatchingMethod)
GRADIENT: tuple[MatchingMethod, ...] = ("dc", "dsa", "idc")


@dataclass(frozen=True)
class Run:
    """One trajectory: the sets that share its networks, with the options all of them have."""

    method: MatchingMethod
    selection: SelectionKind
    iterations: int
    config: MatchingConfig
    ipcs: tuple[int, ...]
    rates: tuple[float, ...]


def plan_runs(config: DistillConfig, data: RealData) -> list[Run]:
    """Sets whose options are the same share a run, unless networks learn from the set itself."""
    method = cast(MatchingMethod, config.method)
    images = Images(data.channels, data.image_size, len(data.classes))
    iterations = config.iterations or PUBLISHED_ITERATIONS[method]
    runs: dict[str, Run] = {}
    for ipc in sizes(config.ipc):
        own = resolve(method, config.matching, ipc, images)
        _check(method, own, data.image_size)
        rate = image_rate(method, own, ipc, images)
        alone = ipc if own.train_on == "surrogate" else None
        key = hash_json([to_dict(own), alone])
        found = runs.get(key) or Run(method, config.selection, iterations, own, (), ())
        runs[key] = replace(found, ipcs=(*found.ipcs, ipc), rates=(*found.rates, rate))
    return list(runs.values())


def _check(method: MatchingMethod, config: MatchingConfig, size: int) -> None:
    queue, factor = method == "idm", _set(config.factor)
    few, batch = _set(config.candidates), _set(config.real_batch)
    need(few == 0 or few >= batch, "matching.candidates", few, f"0 or at least real_batch = {batch}")
    need(
        batch % config.per_cluster == 0,
        "matching.per_cluster",
        config.per_cluster,
        f"a divisor of {batch} (real_batch)",
    )
    need(factor <= size, "matching.factor", factor, f"1 to {size} for images of {size}x{size} px")
    if queue and (config.train_on != "none" or config.inner_steps != 1):
        raise ConfigError("matching.train_on and inner_steps belong to methods with fresh networks; idm has its queue.")
    if queue and not config.queue_size:
        raise ConfigError("matching.queue_size is 0; expected at least 1 network.")
    if config.train_on == "surrogate" and config.warm_steps:
        raise ConfigError("matching.warm_steps is on real images; expected 0 with train_on surrogate.")


def match(
    data: RealData,
    run: Run,
    *,
    seed: int,
    given: SurrogateSet | None = None,
    folder: StageFolder | None = None,
) -> list[SurrogateSet]:
    """The surrogate sets of one run; with a ``folder`` it goes on from the newest checkpoint there."""
    begun, label = time.perf_counter(), f"{run.method} {run.selection}"
    matcher = build(data, run, seed=seed, given=given)
    checkpoints = _checkpoints(folder, run, data, seed)
    found = checkpoints.latest() if checkpoints else None
    if found:
        matcher.load_state_dict(found[1])
    steps = run.iterations * matcher.plan.inner_steps
    loop = _kept(matcher, run, data, checkpoints, folder, seed)
    log = folder.log if folder else None
    follow(loop, label, steps, start=matcher.iteration * matcher.plan.inner_steps, log=log, stage=run.method)
    seconds = time.perf_counter() - begun
    return [_surrogate(data, run, place, matcher, seed, seconds) for place in range(len(run.ipcs))]


def _kept(
    matcher: Matcher, run: Run, data: RealData, checkpoints: Checkpoints | None, folder: StageFolder | None, seed: int
) -> Any:
    """The matcher's records, with checkpoints and snapshots between its iterations."""
    for record in matcher.run():
        if record.pop("done") and checkpoints and folder:
            done = matcher.iteration
            every = run.config.snapshot_every
            if every and done % every == 0 and done < run.iterations:
                for place, ipc in enumerate(run.ipcs):
                    target = folder.path / SNAPSHOTS / f"iteration-{done:06d}" / f"ipc-{ipc}"
                    if not target.exists():
                        _surrogate(data, run, place, matcher, seed, sum(matcher.seconds.values())).save(target)
            if done % run.config.checkpoint_every == 0 and done < run.iterations:
                checkpoints.save(done, matcher.state_dict())
        yield record
    return matcher.sets


def _checkpoints(folder: StageFolder | None, run: Run, data: RealData, seed: int) -> Checkpoints | None:
    if folder is None:
        return None
    identity = {"run": hash_json([run.method, run.selection, to_dict(run.config), list(run.ipcs), seed])}
    name = "-".join(["ipc", *map(str, run.ipcs)])
    identity["data"] = data.fingerprint()
    return Checkpoints(folder.path / CHECKPOINTS / name, run.config.checkpoint_every, 1, identity)


def build(data: RealData, run: Run, *, seed: int, given: SurrogateSet | None = None) -> Matcher:
    """The engine with this run's choices, at its start."""
    config, device = run.config, runtime.device()
    bf16 = runtime.wants_bf16(config.mixed_precision, device)

    def network(number: int) -> nn.Module:
        made = build_network(
            config.network,
            channels=data.channels,
            image_size=data.image_size,
            classes=len(data.classes),
            width=config.width,
            depth=config.depth,
            seed=number,
        )
        layout = torch.channels_last if bf16 or config.compile else torch.contiguous_format
        return made.to(device).to(memory_format=layout)

    real = Split(data.train.images.to(device), data.train.labels.to(device))
    sets = [start(data, run, ipc, network, seed=seed, given=given) for ipc in run.ipcs]
    return Matcher(
        sets=sets,
        real=real,
        objective=_objective(run, bf16),
        selection=_selection(run, data, bf16, seed),
        supply=_supply(run, data, real, network, bf16, seed),
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


def start(data: RealData, run: Run, ipc: int, network: Any, *, seed: int, given: SurrogateSet | None = None) -> Stored:
    """Where the stored images begin."""
    factor, classes = _set(run.config.factor), len(data.classes)
    if given is not None:
        return _of_set(given, data, ipc, factor)
    if run.config.start == "noise":
        return noise(data.train, classes, ipc, factor, seed)
    picks, wanted = [], ipc * factor**2
    fresh = network(derive(seed, "start network")) if run.config.start == "clustered" else None
    for label in range(classes):
        index = data.train.of_class(label)
        if fresh is not None:
            features = embed(fresh, data.train, index, dimensions=None)
            chosen = clustered_start(features, wanted, derive(seed, "clustered start", label))
        else:
            chosen = torch.randperm(len(index), generator=torch_rng(seed, "random start", label))[:wanted]
        picks.append(index[chosen])
    return of_picks(data.train, picks, ipc, factor)


def _of_set(given: SurrogateSet, data: RealData, ipc: int, factor: int) -> Stored:
    """From another set's images: as they are stored where factors agree, else from its whole images, shrunk."""
    if given.classes != data.classes or given.images.shape[1:] != data.train.images.shape[1:]:
        raise ArtifactError(
            f"The set to start from has {len(given.classes)} classes and images {tuple(given.images.shape[1:])}, the "
            f"data {len(data.classes)} and {tuple(data.train.images.shape[1:])}; expected the same."
        )
    if given.factor == factor:
        return of_images(given.prefix(ipc).images, ipc, factor)
    if given.factor != 1:
        raise ArtifactError(f"The set to start from holds {given.factor}x{given.factor} views; expected {factor} or 1.")
    whole = given.prefix(ipc * factor**2)
    picks = [torch.nonzero(whole.labels == label).flatten() for label in range(len(given.classes))]
    return of_picks(Split(whole.images, whole.labels), picks, ipc, factor)


def _objective(run: Run, bf16: bool) -> Objective:
    config = run.config
    fast: dict[str, Any] = {"bf16": bf16, "compile": config.compile, "channels_last": bf16 or config.compile}
    if run.method in GRADIENT:
        return GradientMatching(
            distance=_set(config.distance),
            parameters="all" if config.match_head else "no_head",
            feature_mean=_set(config.feature_weight),
            classes_per_chunk=config.classes_per_chunk,
            **fast,
        )
    return FeatureMatching(ce_weight=_set(config.class_aware), **fast)


def _selection(run: Run, data: RealData, bf16: bool, seed: int) -> Selection:
    config, classes = run.config, len(data.classes)
    batch = _set(config.real_batch)
    if run.selection == "random":
        return RandomSelection(data.train, classes, batch, seed)
    return RepresentativeSelection(
        data.train,
        classes,
        batch,
        seed,
        interval=config.interval,
        per_cluster=config.per_cluster,
        weights=config.cluster_weights,
        candidates=config.candidates or None,
        dimensions=config.dimensions or None,
        bf16=bf16,
    )


def _supply(run: Run, data: RealData, real: Split, network: Any, bf16: bool, seed: int) -> Supply:
    config = run.config
    training = Training(
        classes=len(data.classes),
        batch_size=_set(config.train_batch),
        learning_rate=config.train_learning_rate,
        augmentation=_augmentation(config, data.train, matching=False),
        cutmix=_set(config.cutmix),
        bf16=bf16,
        compile=config.compile,
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
    images = split.images[:: max(1, len(split) // 2000)].float() / 127.5 - 1
    scale: dict[str, Any] = {"mean": float(images.mean()), "std": float(images.std())}
    flip: tuple[Any, ...] = ("flip",) if config.flip else ()
    if config.augmentation == "one":
        return Siamese(operations=("color", "crop", "cutout", *flip, "scale", "rotate"), compose="one", **scale)
    return Siamese(operations=(*flip, "color", "crop", *(("cutout",) if matching else ())), compose="all", **scale)


def _set(value: Any) -> Any:
    """An option that ``resolve`` has filled."""
    assert value is not None
    return value


def _surrogate(data: RealData, run: Run, place: int, matcher: Matcher, seed: int, seconds: float) -> SurrogateSet:
    one = matcher.sets[place]
    meta: dict[str, Any] = {
        "method": run.method,
        "stages": [],
        "stage": None,
        "space": run.selection if run.selection != "random" else None,
        "seed": seed,
        "iterations": matcher.iteration,
        "data": data.describe(),
        "licence": "as the data",
        "seconds": {"distill": round(seconds, 2), **{k: round(v, 2) for k, v in matcher.seconds.items()}},
        "command": command_line(),
        "versions": versions(),
    }
    labels: Tensor = one.labels
    return SurrogateSet(one.stored(), labels, data.classes, meta, one.factor)


def start_set(config: DistillConfig, data: RealData) -> SurrogateSet | None:
    """The surrogate set that matching starts from, where one is given.

    Raises:
        ArtifactError: it is made of other classes, or of images that are test images here.
    """
    place = config.matching.start
    if config.method not in MATCHING or not isinstance(place, Path):
        return None
    given = SurrogateSet.load(place)
    check_origin(f"the set {place}", given.classes, given.meta, data)
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
