"""Surrogate sets straight from the real images by any registered method: coresets, WMDD, matching, one of your own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import is_dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

from torch import Tensor

from gendistill.config import DistillConfig, ipc_sizes, to_dict
from gendistill.config.distill import method_options
from gendistill.config.flat import as_data
from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError, require_type, require_types
from gendistill.io import WorkFolder
from gendistill.networks.teacher import Teacher, time_of
from gendistill.networks.teacher_images import check_teacher, with_statistics_of
from gendistill.progress import track
from gendistill.registry import DISTILLERS, resolve
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.manifest import provenance
from gendistill.surrogate.set import SurrogateSet


def distill(
    data: RealData,
    method: str,
    ipc: int,
    *,
    teacher: Teacher | Sequence[Teacher] = (),
    options: Any = None,
    seed: int = 0,
    features: Tensor | None = None,
    config: DistillConfig | None = None,
    folder: WorkFolder | None = None,
) -> SurrogateSet:
    """``ipc`` images of every class by a distiller.

    Args:
        data: The real images; the set is made from ``data.train``.
        method: A name of ``gendistill.DISTILLERS.names()``.
        ipc: Images of each class.
        teacher: The teacher, or several, of methods that need one, such as wmdd; one whose features a coreset compares.
        options: The method's own: WmddConfig, MatchingConfig, or the dataclass that the method was registered with, or
            its values by name.
        seed: Of everything random.
        features: (N,D) of ``data.train``, which a coreset compares; None compares pixels.
        config: All options at once. Its ``method`` is this one, or not set; its ``ipc`` is replaced.
        folder: Keeps checkpoints and snapshots of the methods that have them, so that a killed run continues.

    Raises:
        ConfigError: an unknown method, options of another one, a teacher that is missing or that nothing reads.
        ArtifactError: a teacher that does not fit the data, or that was trained on test images of theirs.

    Example:
        >>> made = gd.distill(gd.load_data(), "kmeans", ipc=10)
        >>> made.save("kmeans/ipc-10")
    """
    require_type("data", data, RealData)
    chosen = DISTILLERS[require_type("method", method, str)]
    if config is not None and config.method not in (method, DistillConfig().method):
        raise ConfigError(f"config.method is {config.method!r}; expected {method!r}, or a config that names no method.")
    if isinstance(ipc, (list, tuple)):
        raise ConfigError(f"ipc is {ipc!r}; expected a whole number: make a set of each size with a call of its own.")
    own = {} if options is None else _as_section(method, options)
    config = replace(config or DistillConfig(), method=method, ipc=ipc, **own)
    if features is not None:
        if not chosen.coreset or chosen.scores:
            raise ConfigError(f"features are given with method {method}; expected None: it compares none.")
        if teacher:
            raise ConfigError(f"a teacher is given with method {method} and features; expected one of the two.")
        from gendistill.coreset.coresets import coreset_set

        return coreset_set(data, method, ipc, seed=seed, features=features).stored_as(config.image_format)
    teachers = require_types("teacher", teacher, Teacher)
    (made,) = distill_sets(data, config, teachers=teachers, seed=seed, work=folder)
    return made


def distill_sets(
    data: RealData,
    config: DistillConfig,
    *,
    teachers: Sequence[Teacher] = (),
    seed: int = 0,
    work: WorkFolder | None = None,
    statistics_cache: Path | None = None,
    inputs: Mapping[str, SurrogateSet] | None = None,
) -> Iterator[SurrogateSet]:
    """A set for each of ``config.ipc``, in ascending order within what a method makes together, as it is stored.

    Args:
        data: The real images.
        config: The method and its options.
        teachers: Of a method that needs them, or one whose features a coreset compares.
        seed: Of everything random.
        work: Where a method keeps what lets it continue after a kill.
        statistics_cache: Folder of class statistics, for teachers that were trained on other images.
        inputs: What ``read_inputs`` returns, where it was called already.
    """
    method = DISTILLERS[config.method]
    most = math.inf if method.needs_teacher else int(method.takes_teacher)
    if not int(method.needs_teacher) <= len(teachers) <= most:
        wanted = "a teacher" if method.needs_teacher else "at most one" if most else "none"
        raise ConfigError(f"{len(teachers)} teachers are given; expected {wanted} with method {config.method}.")
    if statistics_cache and not teachers:
        raise ConfigError(f"statistics_cache is {str(statistics_cache)!r}; expected None without a teacher.")
    Coding.of(config.image_format, data.image_size)
    inputs = read_inputs(data, config) if inputs is None else inputs
    made: Iterator[SurrogateSet] = resolve(method.make)(
        data, config, teachers=teachers, seed=seed, work=work, statistics_cache=statistics_cache, **inputs
    )
    return map(SurrogateSet.stored_as, made, repeat(config.image_format))


def read_inputs(data: RealData, config: DistillConfig) -> Mapping[str, SurrogateSet]:
    """The sets that the method's options name, by what they are for."""
    method = DISTILLERS[config.method]
    found: Mapping[str, SurrogateSet] = resolve(method.inputs)(data, config) if method.inputs else {}
    return found


def _as_section(method: str, options: Any) -> Mapping[str, Any]:
    """The options of a method under the name of their field in DistillConfig."""
    chosen = DISTILLERS[method]
    if chosen.options:
        return {"options": to_dict(options)}
    sections = {name: type(getattr(DistillConfig(), name, None)) for name in chosen.sections}
    found = [name for name, kind in sections.items() if is_dataclass(kind) and isinstance(options, kind)]
    if not found:
        wanted = [kind.__name__ for kind in sections.values() if is_dataclass(kind)]
        raise ConfigError(
            f"options is a {type(options).__name__}; expected {' or '.join(wanted) or 'None'} with method {method}."
        )
    return {found[0]: options}


# How each kind of method makes its sets. Their libraries are imported when one is used.


def coreset_sets(
    data: RealData,
    config: DistillConfig,
    *,
    teachers: Sequence[Teacher],
    seed: int,
    statistics_cache: Path | None,
    **_: Any,
) -> Iterator[SurrogateSet]:
    from gendistill.coreset.coresets import coreset_set

    features = None
    for teacher in teachers:  # one at most
        check_teacher("the teacher", teacher, data)
        features = with_statistics_of(teacher, data, statistics_cache).statistics.features
    with closing(track(ipc_sizes(config.ipc), config.method)) as sizes:  # the bar ends before an error's message
        for ipc in sizes:
            made = coreset_set(data, config.method, ipc, seed=seed, features=features)
            for teacher in teachers:
                made.meta["teacher_hash"] = teacher.hash()
                made.meta["shared_seconds"] = time_of(teachers)
            yield made


def difficulty_sets(
    data: RealData, config: DistillConfig, *, seed: int, work: WorkFolder | None, **_: Any
) -> Iterator[SurrogateSet]:
    from gendistill.coreset.coresets import coreset_set, wanted_counts
    from gendistill.coreset.difficulty import measure_difficulty

    own, sizes = config.difficulty, ipc_sizes(config.ipc)
    wanted_counts(data.train, data.classes, max(sizes))  # before the training
    curves = measure_difficulty(data, own, seed=seed, folder=work)
    ranking, space = curves.ranking(own.score), f"{own.score}, {own.prefer}"
    for ipc in sizes:
        made = coreset_set(data, config.method, ipc, seed=seed, features=ranking, space=space, prefer=own.prefer)
        made.meta["difficulty"] = to_dict(own)
        made.meta["shared_seconds"] = {"difficulty": round(curves.seconds, 2)}
        yield made


def wmdd_sets(
    data: RealData,
    config: DistillConfig,
    *,
    teachers: Sequence[Teacher],
    seed: int,
    work: WorkFolder | None,
    statistics_cache: Path | None,
) -> Iterator[SurrogateSet]:
    from gendistill.refine.feature_space import ground_space
    from gendistill.refine.wmdd import wmdd

    space = ground_space(teachers, data, config.wmdd, cache=statistics_cache)
    for ipc in ipc_sizes(config.ipc):
        yield wmdd(
            data, teachers, ipc, config.wmdd, seed=seed, folder=work, space=space, image_format=config.step_format
        )


def matching_sets(
    data: RealData,
    config: DistillConfig,
    *,
    seed: int,
    work: WorkFolder | None,
    start: SurrogateSet | None = None,
    **_: Any,
) -> Iterator[SurrogateSet]:
    from gendistill.matching.distiller import matched
    from gendistill.report.images import contact_sheet

    return matched(data, config, seed=seed, given=start, folder=work, draw=contact_sheet)


def start_of_matching(data: RealData, config: DistillConfig) -> Mapping[str, SurrogateSet]:
    """The set that matching starts from, where one is named."""
    from gendistill.matching.distiller import start_set

    given = start_set(config, data)
    return {"start": given} if given else {}


def function_sets(
    data: RealData,
    config: DistillConfig,
    *,
    teachers: Sequence[Teacher],
    seed: int,
    work: WorkFolder | None,
    **_: Any,
) -> Iterator[SurrogateSet]:
    """By a function that was registered: a set at a time, its provenance completed."""
    method = DISTILLERS[config.method]
    function, given = resolve(method.function), {}
    if method.options:
        given["options"] = method_options(config)
    if method.needs_teacher:
        given["teachers"] = list(teachers)
    if method.resumable:
        given["work"] = work
    with closing(track(ipc_sizes(config.ipc), config.method)) as sizes:
        for ipc in sizes:
            start = time.perf_counter()
            made = function(data, ipc, seed, **given)
            made = _complete(made, data, config.method, seed, time.perf_counter() - start)
            if "options" in given and DISTILLERS.is_added(config.method):  # ours record their own
                made.meta.setdefault("options", {config.method: as_data(given["options"])})
            made.meta.setdefault("shared_seconds", time_of(teachers))
            yield made


def _complete(made: Any, data: RealData, method: str, seed: int, seconds: float) -> SurrogateSet:
    """The set with what every manifest holds, unless its own ``meta`` says otherwise."""
    if not isinstance(made, SurrogateSet):
        raise ConfigError(f"The method {method!r} returned {type(made).__name__}; expected a SurrogateSet.")
    if made.classes != data.classes:
        raise ConfigError(
            f"The method {method!r} returned a set of the classes {', '.join(made.classes)}; expected those of the "
            f"data: {', '.join(data.classes)}."
        )
    meta = provenance(method, seed=seed, data=data.describe(), seconds={"distill": seconds}, space=None)
    return replace(made, meta={**meta, **made.meta})
