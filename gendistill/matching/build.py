"""The engine of a run, built of the parts that its options choose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from gendistill import parallel, runtime
from gendistill.config import Blended, Characteristic, DistillConfig, Gradient, MatchingConfig, Queue, Representative
from gendistill.data.dataset import RealData, Split, mean_and_std
from gendistill.data.siamese import Siamese
from gendistill.errors import ConfigError, DataError
from gendistill.matching.distribution import CharacteristicMatching, FeatureMatching
from gendistill.matching.engine import Matcher, MatchingObjective, Plan
from gendistill.matching.gradient import GradientMatching
from gendistill.matching.methods import Run, filled, formation, network_of, plan_runs
from gendistill.matching.network_pool import BlendedNetworks, FreshNetworks, NetworkQueue, Supply, Training
from gendistill.matching.selection import RandomSelection, RepresentativeSelection, Selection
from gendistill.matching.synthetic import of_set, starts
from gendistill.networks.factories import batch_norm_layers
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.multi_formation import views_in
from gendistill.surrogate.set import SurrogateSet

GPU_CLASSES = 10  # most of a gradient's pass; batches of one class leave a GPU idle
GPU_PIXELS = 1280 * 32**2  # of it: 10 classes of CIFAR-10's batches; second derivatives of more may not fit


def build(
    data: RealData, run: Run, *, seed: int, given: SurrogateSet | None = None, coding: Coding | None = None
) -> Matcher:
    """The engine with this run's choices, at its start; with a ``coding`` networks see the images as its files."""
    begun, config, device = time.perf_counter(), run.config, runtime.device()

    def network(number: int) -> nn.Module:
        layout = torch.channels_last if any(run.fast) else torch.contiguous_format
        return network_of(data, config, number).to(device).to(memory_format=layout)

    counts = data.train.labels.bincount(minlength=len(data.classes)).tolist()
    empty = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(f"Class {empty[0]!r} has no training image; expected at least one of every class.")
    parallel.require_share(len(data.classes))
    _check_statistics(run, data, partial(network_of, data, config))
    real = data.train.to(device)
    factor = formation(config)
    if given:
        sets = [of_set(given, data, ipc, factor) for ipc in run.ipcs]
    else:
        sets = starts(data, run.ipcs, factor, filled(config.start), network, seed=seed)
    matcher = Matcher(
        sets=[replace(one, coding=coding) for one in sets],
        real=real,
        objective=_objective(run, data.image_size),
        selection=_selection(run, real, len(data.classes), seed),
        supply=_supply(run, data, real, network, seed),
        augmentation=_augmentation(config, data.train, matching=True),
        plan=Plan(
            iterations=run.iterations,
            inner_steps=filled(config.inner_steps),
            learning_rates=run.rates,
            momentum=filled(config.momentum),
            optimizer=filled(config.optimizer),
            by_class=run.rules.by_class,
            most_views=config.most_views or None,
        ),
        seed=seed,
    )
    matcher.clock.add({"start": time.perf_counter() - begun})
    return matcher


def matching_networks(data: RealData, config: DistillConfig, *, seed: int = 0) -> Iterator[tuple[int, int, nn.Module]]:
    """The networks that a matching run sees, without matching: how they learn from the real images.

    Args:
        data: The real images; ``data.train`` is learned.
        config: The method, its options and the numbers of iterations and inner steps.
        seed: Of the networks and of their batches.

    Yields:
        (iteration, inner step, network) before each inner step. The network is the same object throughout an
        iteration, and goes on learning afterwards.

    Raises:
        ConfigError: the networks learn from the surrogate images, which are not made here.
    """
    run = plan_runs(config, data)[0]
    if run.config.train_on == "surrogate":
        raise ConfigError("matching.train_on is surrogate; expected real or none: no surrogate images are made here.")
    matcher = build(data, run, seed=seed)
    supply, inner_steps = matcher.supply, matcher.plan.inner_steps
    for iteration in range(run.iterations):
        network = supply.network(iteration)
        for inner in range(inner_steps):
            yield iteration, inner, network
            supply.learn(iteration, inner, inner == inner_steps - 1, [])


def _check_statistics(run: Run, data: RealData, network: Any) -> None:
    """Refuse batch norm where it would have one value a channel to take its statistics of."""
    config, real = run.config, int(data.train.labels.bincount(minlength=len(data.classes)).min())
    batches = {"images a training step (train_batch)": filled(config.train_batch)}
    if not isinstance(config.networks, Queue | Blended):  # whose networks match in evaluation mode
        views = min(run.ipcs) * views_in(formation(config))
        batches["view of a class (ipc x factor^2)"] = min(views, config.most_views or views)
        batches["real image of a class (real_batch)"] = min(real, filled(config.real_batch))
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


def _objective(run: Run, side: int) -> MatchingObjective:
    config = run.config
    views = max(run.ipcs) * views_in(formation(config))
    rows = max(filled(config.real_batch), min(views, config.most_views or views))
    objective = filled(config.objective)
    if isinstance(objective, Gradient):
        return GradientMatching(
            distance=filled(objective.distance),
            match_head=filled(objective.match_head),
            feature_mean=filled(objective.feature_weight),
            classes_per_chunk=config.classes_per_chunk or classes_together(runtime.device(), rows, side),
            **run.fast._asdict(),
        )
    if isinstance(objective, Characteristic):
        return CharacteristicMatching(
            frequencies=filled(objective.frequencies),
            amplitude_weight=filled(objective.amplitude_weight),
            classes_per_chunk=config.classes_per_chunk,
            **run.fast._asdict(),
        )
    return FeatureMatching(
        ce_weight=filled(objective.class_aware),
        classes_per_chunk=config.classes_per_chunk,
        **run.fast._asdict(),
    )


def classes_together(device: torch.device, rows: int, side: int) -> int:
    """Classes of one gradient's pass, ``rows`` images of ``side`` px each: on a CPU one by one is fastest."""
    return 1 if device.type == "cpu" else min(GPU_CLASSES, max(1, GPU_PIXELS // (rows * side**2)))


def _selection(run: Run, real: Split, classes: int, seed: int) -> Selection:
    chosen, batch = run.config.selection, filled(run.config.real_batch)
    if not isinstance(chosen, Representative):
        return RandomSelection(real, classes, batch, seed)
    return RepresentativeSelection(
        real,
        classes,
        batch,
        seed,
        interval=filled(chosen.interval),
        per_cluster=chosen.per_cluster,
        weights=filled(chosen.cluster_weights),
        candidates=chosen.candidates or None,
        dimensions=chosen.dimensions or None,
        **run.fast._asdict(),
    )


def _supply(run: Run, data: RealData, real: Split, network: Any, seed: int) -> Supply:
    config, networks = run.config, filled(run.config.networks)
    queue = isinstance(networks, Queue)
    training = Training(
        classes=len(data.classes),
        batch_size=filled(config.train_batch),
        learning_rate=filled(config.train_learning_rate),
        augmentation=None if queue else _augmentation(config, data.train, matching=False),
        cutmix=filled(config.cutmix),
        bf16=run.fast.bf16,
        compile=run.fast.compile,
        momentum=run.rules.momentum,
        weight_decay=run.weight_decay,
    )
    if queue:
        return NetworkQueue(
            network,
            training,
            real,
            steps=filled(config.train_steps),
            size=filled(networks.size),
            interval=filled(networks.interval),
            seed=seed,
            most_steps=networks.most_steps or None,
        )
    if isinstance(networks, Blended):
        size, steps = filled(networks.pool_size), filled(networks.pool_steps)
        return BlendedNetworks(network, training, real, steps, size, seed)
    source, warm = filled(networks.train_on), filled(networks.warm_steps)
    return FreshNetworks(network, training, source, real, filled(config.train_steps), seed, warm)


def _augmentation(config: MatchingConfig, split: Split, *, matching: bool) -> Siamese | None:
    """DSA's, one of the operations a step, or IDC's, all in order; cutout is for matching alone, where CutMix is for
    training (IDC)."""
    if config.augmentation == "none":
        return None
    mean, std = mean_and_std(split)
    flip: tuple[Any, ...] = ("flip",) if config.flip else ()
    if config.augmentation == "one":
        operations = ("color", "crop", "cutout", *flip, "scale", "rotate")
        return Siamese(operations=operations, compose="one", mean=mean, std=std)
    operations = (*flip, "color", "crop", *(("cutout",) if matching and config.augmentation == "all" else ()))
    return Siamese(operations=operations, compose="all", mean=mean, std=std)
