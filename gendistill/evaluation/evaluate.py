"""Evaluate surrogate sets beside baselines: what every set is worth to a classifier trained on it.

Every set is also described class by class beside random real sets of its size, and searched for faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

from gendistill import runtime
from gendistill.config import EvaluateConfig
from gendistill.data.dataset import RealData, Split, check_origin, mean_and_std
from gendistill.data.mapped import central
from gendistill.errors import ConfigError, require_type, require_types
from gendistill.evaluation.baselines import Baselines, compare_with_equal_bytes
from gendistill.evaluation.cache import BaselineCache, RunLog, cache_folder
from gendistill.evaluation.checks import NOT_RECOGNISED, SHUFFLED, VALUE_RANGE, Finding
from gendistill.evaluation.checks.counts import data_findings
from gendistill.evaluation.checks.labels import label_quality, soft_targets, unrecognised_samples
from gendistill.evaluation.coded_photographs import coded_rows, compare_with_coded
from gendistill.evaluation.entries import Entry, pool_entry, soft_entries
from gendistill.evaluation.evaluator import (
    RunRecord,
    TrainingRun,
    check_entries,
    evaluate_entries,
    planned_rows,
    resolve_precision,
)
from gendistill.evaluation.inputs import (
    by_counts,
    check_origins,
    check_soft_labels,
    facts,
    input_findings,
    pools,
    size_of,
    total_bytes,
)
from gendistill.evaluation.protocols import Settings, resolve_protocol
from gendistill.evaluation.reference import DescribedSet, RealReference, by_class
from gendistill.evaluation.result import Evaluation
from gendistill.evaluation.scores import scores
from gendistill.evaluation.set_metrics import DRAWS, likeness
from gendistill.evaluation.summary import FindingEntry, LabelNumbers, SetNumbers
from gendistill.io import WorkFolder
from gendistill.networks.feature_extractors import FeatureExtractor, make_feature_extractor
from gendistill.networks.teacher import Teacher
from gendistill.progress import follow, note, track
from gendistill.registry import CHECKS
from gendistill.surrogate.manifest import command_line, versions
from gendistill.surrogate.set import SurrogateSet


def all_entries(
    data: RealData, sets: Sequence[SurrogateSet], config: EvaluateConfig, seed: int, teacher: Teacher | None
) -> list[Entry]:
    """Baselines by IPC, the sets with hard labels, labelled sets after baselines of their recipe, all real images.

    Sets that differ in their synthesis seed alone share an entry; they are compared with a random draw for every run.
    """
    real, hard = Baselines(data, config, seed, teacher), pools(sets, labels=False)
    soft = pools([s for s in sets if s.soft_labels], labels=True) if resolve_protocol(config).labels == "soft" else []
    found: list[Entry] = []
    for ipc in sorted({size_of(pool[0]) for pool in hard}):
        here = by_counts(pool[0] for pool in hard if size_of(pool[0]) == ipc)
        large = [(pool, False) for pool in hard if size_of(pool[0]) == ipc and pool[0].factor != 1]
        large += [(pool, True) for pool in soft if size_of(pool[0]) == ipc]
        most = max(len(pool) for pool in hard + soft if size_of(pool[0]) == ipc)
        totals = [total_bytes(pool, labels=labels) for pool, labels in large]
        found += real.beside(ipc, most * config.runs, totals, here)
        if "coded" in config.baselines:
            every = [(pool, labels) for labels, pools_ in ((False, hard), (True, soft)) for pool in pools_]
            sizes = [facts(pool, labels=labels)["bytes"] for pool, labels in every if size_of(pool[0]) == ipc]
            training = _validating(data, config)
            found += coded_rows(real, ipc, [sum(size.values()) for size in sizes], most * config.runs, training)
    beside = list(found)
    found += [pool_entry(pool) for pool in hard]
    if soft:
        found += soft_entries(soft, beside, teacher)
    return found + real.full()


def _validating(data: RealData, config: EvaluateConfig) -> TrainingRun:
    """Trainings as those of the rows, judged by the validation images."""
    settings = replace(resolve_protocol(config), legacy_best=False)
    images = Split(central(data.validation.images, settings.test_crop), data.validation.labels)
    return TrainingRun(settings, images, len(data.classes), runtime.device(), mean_and_std(data.train))


def _check(data: RealData, surrogates: Sequence[SurrogateSet], settings: Settings, teacher: Teacher | None) -> None:
    """Refuse, before anything that takes long, sets and a teacher that do not fit the data or the protocol."""
    check_origins(surrogates, data)
    if teacher is not None:
        require_type("teacher", teacher, Teacher)
        check_origin("the teacher", teacher.classes, teacher.meta, data)
    check_soft_labels(surrogates, settings, teacher)
    entries = [Entry(made.meta.get("method", "unknown"), None, size_of(made), (made.split,)) for made in surrogates]
    check_entries(entries, TrainingRun(settings, data.test, len(data.classes)))


def evaluate(
    data: RealData,
    surrogates: SurrogateSet | Sequence[SurrogateSet],
    config: EvaluateConfig | None = None,
    *,
    seed: int = 0,
    teacher: Teacher | None = None,
    folder: WorkFolder | None = None,
) -> Evaluation:
    """Train classifiers from scratch on every set and on baselines of the same size, and test each once.

    Every set has a row with hard labels. Where the protocol or ``config.labels`` says soft, labelled sets have a second
    row, and so have the baselines, which the ``teacher`` labels in the same way. Several processes that call this
    alike share the trainings; each returns the same.

    Args:
        data: The real images that the baselines and the test split come from.
        surrogates: A set, or sets of any IPC; sets that differ in their synthesis seed alone share a row.
        config: The protocol and what to change of it.
        seed: Of the random draws and of the coresets; it does not change the training seeds.
        teacher: Made the soft labels; coresets compare its features, k-means pixels as well.
        folder: Keeps finished trainings, so that an interrupted evaluation goes on.

    Returns:
        The rows with scores, numbers of the sets, and findings.

    Raises:
        ArtifactError: a set or the teacher belongs to other data, or soft labels to another teacher or protocol.
        ConfigError: an option does not fit the images, or soft rows lack labels or the teacher.
        DataError: images of another shape than the test images.

    Example:
        >>> result = gendistill.evaluate(data, [gendistill.distill(data, "herding", 10)])
        >>> print(gendistill.table(result))
    """
    config = require_type("config", config or EvaluateConfig(), EvaluateConfig)
    require_type("data", data, RealData)
    surrogates = require_types("surrogates", surrogates, SurrogateSet)
    _check(data, surrogates, resolve_protocol(config), teacher)
    cache_folder(config.baseline_cache)
    config = resolve_precision(config, data)
    settings, device = resolve_protocol(config), runtime.device()
    is_main, place = runtime.processes().is_main_process, folder.path if folder else None
    described = config.describe and is_main
    extractor = make_feature_extractor(config.features, data, teacher, place) if described else None
    entries = all_entries(data, surrogates, config, seed, teacher)
    needed = ["accuracy", "correct", "ece", "seconds", *["legacy_best"] * settings.legacy_best]
    cache, runs = BaselineCache.of(data, config, device), RunLog(folder, needed)
    made = {surrogate.content_hash(): surrogate for surrogate in surrogates}
    sets, found = describe(data, made, extractor, seed=seed) if extractor else ({}, [])  # while others begin to train

    def keep(record: RunRecord) -> None:
        if record["baseline"] and record["key"] not in runs.done and not record["elsewhere"]:
            cache.keep(record["key"], record["outcome"])
        runs.append(record)

    loop = evaluate_entries(
        entries,
        data.test,
        data.classes,
        config,
        device=device,
        done=runs.done,
        recall=cache.recall,
        normal=mean_and_std(data.train),
    )
    total = sum(entry.count(settings.runs) for entry, *_ in planned_rows(entries, settings))
    rows = follow(loop, "evaluate", total, log=keep, every=1, stage="evaluate")
    sets, found = runtime.of_main_process(lambda: (sets, _united(found, input_findings(surrogates, data))))
    return Evaluation(
        protocol=settings.protocol,
        data=data.describe(),
        seed=seed,
        rows=compare_with_coded(compare_with_equal_bytes(rows)),
        scores=scores(rows),
        sets=sets,
        findings=found,
        command=command_line(),
        versions=versions(),
        device=str(device),
        settings=settings.to_dict(),
    )


def _united(seen: list[FindingEntry], read: list[FindingEntry]) -> list[FindingEntry]:
    """All findings of ``seen``, and those of ``read`` of other kinds."""
    known = {(finding["set"], finding["kind"]) for finding in seen}
    return seen + [finding for finding in read if (finding["set"], finding["kind"]) not in known]


def describe(
    data: RealData, sets: Mapping[str, SurrogateSet], extractor: FeatureExtractor, *, seed: int = 0
) -> tuple[dict[str, SetNumbers], list[FindingEntry]]:
    """Measure every set, and look for faults.

    Of a class at most half as many images as its pool of real ones has are measured, evenly spaced. Sets of another
    image size than the real images are left out.

    Args:
        data: The real images.
        sets: The sets, by content hash.
        extractor: Computes features, and classifies images.
        seed: Of the random real sets.

    Returns:
        (numbers of each set by content hash, faults).
    """
    shape = data.train.images.shape[1:]
    fitting = {key: made for key, made in sets.items() if made.images.shape[1:] == shape and len(made.labels)}
    real = RealReference.of(data, extractor, seed)
    found, findings = dict[str, SetNumbers](), data_findings(data)
    checks = real.leaks.reference.check_all(made.split.pixels for made in fitting.values())
    for (key, made), copies in track(zip(fitting.items(), checks, strict=True), "describe sets", len(fitting)):
        subject = DescribedSet.of(made, real, extractor, copies)
        quality = label_quality(subject, real, soft_targets(made), extractor.classifier, seed)
        found[key] = _numbers(subject, real, extractor.space, quality, seed)
        findings += [replace(finding, set=key) for finding in _faults(subject, real)]
    findings = _one_of_a_generator(findings, fitting)
    for finding in findings:
        if finding.severity == "error":
            note(f"{finding.kind}: {finding.text}")
    return found, [finding.to_dict() for finding in findings]


def _numbers(subject: DescribedSet, real: RealReference, space: str, labels: LabelNumbers, seed: int) -> SetNumbers:
    measured, classes = subject.measured, len(real.data.classes)
    counts = measured.counts(classes)
    features = by_class(subject.features, measured.labels, classes)
    return {
        "features": space,
        "images": len(subject.made.images),
        "views": len(subject.views),
        "measured": len(measured),
        "measured_by_class": counts,
        "draws": DRAWS,
        "classes": list(real.data.classes),
        "measures": likeness(real.features, features, real.held(subject), real.random(counts, seed), seed=seed),
        "copies": {
            **subject.copies.summary(),
            "near_test": len(subject.near),
            "control": real.control,
        },
        "labels": labels,
    }


def _faults(subject: DescribedSet, real: RealReference) -> list[Finding]:
    """What every registered check finds, one finding for one fault."""
    found = {name: run_check(name, subject, real) for name in CHECKS.names()}
    pixels, labels = found["pixel_values"], found["labels"]
    if any(f.kind == VALUE_RANGE and f.severity == "error" for f in pixels):  # which is why images are not recognised
        found["labels"] = [f for f in labels if f.kind not in (VALUE_RANGE, NOT_RECOGNISED)]
    elif any(f.kind == VALUE_RANGE for f in labels):
        found["pixel_values"] = [f for f in pixels if f.kind != VALUE_RANGE]
    lost = (NOT_RECOGNISED, SHUFFLED) if found["pixel_values"] else (NOT_RECOGNISED,)
    if is_generated(subject.made):
        found["labels"] = [unrecognised_samples(f.numbers) if f.kind in lost else f for f in found["labels"]]
    return [*chain(*found.values())]


def is_generated(made: SurrogateSet) -> bool:
    return made.meta.get("method") == "generative"


def _one_of_a_generator(findings: list[Finding], sets: Mapping[str, SurrogateSet]) -> list[Finding]:
    """Where a generator's samples are not recognised, one finding for all generated sets: that of the largest such set.

    The unusual pixel values of these sets have the same cause.
    """
    made = {key: one for key, one in sets.items() if is_generated(one)}
    own = [f for f in findings if f.set in made]
    lost = [f for f in own if f.kind == NOT_RECOGNISED]
    if not lost:
        return findings
    first = max(lost, key=lambda f: len(made[str(f.set)].labels))
    same = lost + [f for f in own if f.kind == VALUE_RANGE and f.severity == "warning"]
    said = f"{first.text} This is so in {len(lost)} of {len(made)} generated sets." if len(made) > 1 else first.text
    left = [f for f in findings if f is first or f not in same]
    return [replace(f, text=said) if f is first else f for f in left]


def run_check(name: str, subject: DescribedSet, real: RealReference) -> list[Finding]:
    """The findings of one check.

    Raises:
        ConfigError: it returns something else.
    """
    findings = list(CHECKS[name](subject, real))
    strange = [one for one in findings if not isinstance(one, Finding)]
    if strange:
        raise ConfigError(f"The check {name!r} returned {strange[0]!r}; expected Finding objects.")
    return findings
