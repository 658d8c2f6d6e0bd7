"""Which runs a matching command comes to: every option resolved, those that share networks together, refusals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from torch import nn

from gendistill import runtime
from gendistill.config import (
    DistillConfig,
    MatchingConfig,
    MatchingMethod,
    SelectionKind,
    as_tuple,
    need,
    sizes,
    to_dict,
)
from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError
from gendistill.hashing import hash_json
from gendistill.matching.idle import GRADIENT, check_used
from gendistill.matching.methods import PUBLISHED_ITERATIONS, Images, image_rate, resolve
from gendistill.networks.cost import BACKWARD, training_flop
from gendistill.networks.registry import build_network
from gendistill.surrogate.multi_formation import Factor, sides

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
    seen = min(filled(own.real_batch), largest) * len(data.classes) / (1 if method in GRADIENT else 1 + BACKWARD)
    networks = 2 if method == "idm" else 0 if own.train_on == "none" else 1
    trained = networks * filled(own.train_steps) * filled(own.train_batch)
    images = iterations * filled(own.inner_steps) * (seen + trained)
    flop = training_flop(network_of(data, own, 0), data.channels, data.image_size, images)
    return runtime.fast(own.mixed_precision, own.compile, device, flop)


def network_of(data: RealData, config: MatchingConfig, seed: int) -> nn.Module:
    return build_network(
        filled(config.network),
        channels=data.channels,
        image_size=data.image_size,
        classes=len(data.classes),
        width=config.width,
        depth=config.depth,
        seed=seed,
    )


def _check(method: MatchingMethod, config: MatchingConfig, size: int) -> None:
    queue, factor = method == "idm", formation(config)
    few, batch = filled(config.candidates), filled(config.real_batch)
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
    need(filled(config.real_batch) < largest, "matching.real_batch", config.real_batch, expected)


def formation(config: MatchingConfig) -> Factor:
    """The factor of resolved options, or several in ascending order."""
    found = tuple(sorted(as_tuple(filled(config.factor))))
    return found if len(found) > 1 else found[0]


def filled(value: Any) -> Any:
    """An option that ``resolve`` has filled."""
    assert value is not None
    return value
