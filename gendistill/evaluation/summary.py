"""What an evaluation finds, typed: its rows, scores, numbers of the sets and findings. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Required, TypedDict, TypeVar

from gendistill.errors import ArtifactError
from gendistill.io import mismatch, read_json

Labels = Literal["hard", "soft", "online"]
Severity = Literal["error", "warning"]
AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])
Pair = list[float]  # [low, high]: the ends of a 95 % interval


class RunResult(TypedDict, total=False):
    """One finished training.

    Attributes:
        accuracy: Share of the test images classified right, in [0, 1].
        correct: Test images classified right, by class.
        ece: Expected calibration error, in [0, 1].
        legacy_best: The highest accuracy of all tests along the way, in [0, 1]; only where asked for.
        seconds: Wall-clock time of the training and the test.
        cached: True where another evaluation trained it.
    """

    accuracy: Required[float]
    correct: list[int]
    ece: float
    legacy_best: float
    seconds: float
    cached: bool


class SetFacts(TypedDict, total=False):
    """What a row says of the images themselves; the mean over the sets where a row pools several.

    Attributes:
        stored_images: Images on disk.
        decoded_images: Images to train on, more than the stored ones for a multi-formation set.
        bytes: Size on disk in bytes, by ``images`` (PNG) and ``labels`` (soft labels).
        synthesis_seconds: Wall-clock time of all that making the set took, training of the generator and of teachers
            among it; None where unknown, or where nothing was made.
        shared_seconds: Of that, the parts that other sets use too: ``generator``, ``teacher``, ``label_teacher``,
            ``start_set``, ``pool``. Sets of older versions lack all but the pool, and these are not counted then.
        name: The folder's name, of a plain folder without a manifest.
        missing_classes: Names of the classes without any image.
        image_format: How the images are coded, of a set that is not stored as PNG, and of photographs in a set's bytes.
    """

    stored_images: int
    decoded_images: int
    bytes: dict[str, int]
    synthesis_seconds: float | None
    shared_seconds: dict[str, float]
    name: str
    missing_classes: list[str]
    image_format: str


class Row(SetFacts, total=False):
    """One set, or one baseline, with one kind of labels, one network and one choice of augmentation.

    Rows of older versions may lack the keys that are not required; those of an evaluation have all but a few.

    Attributes:
        method: A distiller's name, ``random``, ``kmeans``, ``herding``, ``kcenter``, ``full``, or ``folder``.
        stage: Of a generative set ``base``, ``samples``, ``select`` or ``refined``; else None.
        ipc: Stored images per class, rounded up; None for all real images.
        labels: ``hard``, ``soft`` (stored) or ``online`` (made by the teacher in training).
        recipe: How the soft labels were made; None for hard labels.
        augment: Whether the images were augmented in training.
        network: The network that was trained.
        space: What a coreset's distances are between, or how random draws differ from those of equal counts.
        counts: Stored images by class where they are not ``ipc`` for every class, else None.
        accuracy: Test accuracy of every run, in [0, 1].
        mean: Mean of ``accuracy``.
        std: Standard deviation of ``accuracy`` with n - 1.
        per_class: Mean test accuracy by class, in [0, 1]; None for a class without test images.
        ece: Expected calibration error of every run, in [0, 1].
        legacy_best: Highest accuracy along the way of every run, in [0, 1]; only where asked for.
        seconds: Wall-clock time of all trainings of the row.
        set: Content hash of the set, or of every pooled set; None for a baseline.
        synthesis_seeds: Sets that differ in their synthesis seed alone and share the row; run r is of set r mod this.
        std_within: Deviation of the runs of one set, pooled over the sets; None for one set.
        std_between: Deviation of the sets' means; None for one set.
        cached: Runs that an earlier evaluation trained.
        ci95_vs_random: Interval of the accuracy minus that of random images, paired by run; None for the reference.
        ci95_these_sets: The same for new trainings on these very sets; None for one set.
        ci95_vs_equal_bytes: The same against random images of as many bytes, for sets with soft labels or packed views.
        ci95_vs_coded: The same against photographs in the best image format, in at most the bytes of the set.
        coded: What these photographs are called in a sentence.
        verdict: ``reference``, or ``better``, ``not better`` or ``worse than random``.
    """

    method: Required[str]
    stage: Required[str | None]
    ipc: Required[int | None]
    labels: Required[Labels]
    recipe: str | None
    augment: Required[bool]
    network: Required[str]
    space: str | None
    counts: list[int] | None
    accuracy: Required[list[float]]
    mean: Required[float]
    std: Required[float]
    per_class: list[float | None]
    ece: list[float]
    legacy_best: list[float]
    seconds: float
    set: str | list[str] | None
    synthesis_seeds: int
    std_within: float | None
    std_between: float | None
    cached: int
    ci95_vs_random: Pair | None
    ci95_these_sets: Pair | None
    ci95_vs_equal_bytes: Pair | None
    ci95_vs_coded: Pair | None
    coded: str
    verdict: str


class Step(TypedDict, total=False):
    """Accuracies after one step of class-incremental learning, or their average over all steps.

    Attributes:
        accuracy: Test accuracy on the classes that have arrived, by run, in [0, 1].
        mean: Mean of ``accuracy``.
        std: Standard deviation of ``accuracy`` with n - 1.
        ci95_vs_random: Interval of the accuracy minus that of random images, paired by run; None for the reference.
        verdict: As in ``Row``.
    """

    accuracy: Required[list[float]]
    mean: Required[float]
    std: Required[float]
    ci95_vs_random: Pair | None
    verdict: str


class ContinualRow(TypedDict):
    """One set or baseline as the memory of class-incremental learning; the other keys are those of ``Row``.

    Attributes:
        steps: One entry for each step in which classes arrive.
        average: The average over the steps, by run.
        seconds: Wall-clock time of all trainings of the row.
    """

    method: str
    stage: str | None
    space: str | None
    ipc: int | None
    counts: list[int] | None
    labels: Labels
    augment: bool
    network: str
    set: str | list[str] | None
    steps: list[Step]
    average: Step
    seconds: float


class Score(TypedDict, total=False):
    """A score in [0, 1] of one set, see ``evaluation.scores``.

    Attributes:
        score: Of the mean accuracies; None where a row that it needs is missing.
        std: Deviation of the scores by run.
        runs: The score of every run.
        hlr: Hard-label recovery, a difference of accuracies in [-1, 1]; lower is better.
        ior: Improvement over random images with labels of the same recipe, in [-1, 1].
        augment: Whether the rows of an ``lrs`` were augmented.
        augmented: Improvement over random images with augmentation, in [-1, 1].
        plain: The same without augmentation.
    """

    score: Required[float | None]
    std: Required[float | None]
    runs: Required[list[float]]
    hlr: float | None
    ior: float | None
    augment: bool
    augmented: float | None
    plain: float | None


class ScoreEntry(TypedDict):
    """The scores of one set or coreset; the first keys are those of its rows.

    Attributes:
        lrs: The label-robust score.
        ars: The augmentation-robust score; None unless there are rows with and without augmentation.
        missing: Sentences that say which rows were missing.
    """

    method: str
    stage: str | None
    space: str | None
    ipc: int | None
    labels: Labels
    recipe: str | None
    network: str
    set: str | list[str] | None
    lrs: Score
    ars: Score | None
    missing: list[str]


class RandomSets(TypedDict):
    """A measure of random real sets of the set's size: ``mean`` and ``std`` over the sets, and the mean by class."""

    mean: float | None
    std: float | None
    by_class: list[float | None]


class Measure(TypedDict):
    """One measure of a set.

    Attributes:
        mean: Mean over the classes that could be measured.
        by_class: The measure of every class; None where there are too few images.
        random: The same of random real sets; None where they could not be measured.
        reason: Why classes are None, if some are.
    """

    mean: float | None
    by_class: list[float | None]
    random: RandomSets | None
    reason: str | None


class LabelNumbers(TypedDict):
    """How a classifier of the real images judges the labels, by ``agreement`` (a share) and ``entropy`` (nats).

    Attributes:
        hard: For the hard labels.
        held_out_agreement: Accuracy of that classifier on held-out real images, in [0, 1].
        soft: For stored soft labels; None where there are none to compare.
        soft_reason: Why ``soft`` or its random sets are None, if so.
    """

    hard: dict[str, Measure]
    held_out_agreement: float
    soft: dict[str, Measure] | None
    soft_reason: str | None


class CopyNumbers(TypedDict, total=False):
    """The copy check of one set.

    Attributes:
        space: What distances are between.
        images: Decoded images of the set.
        exact: Images that equal a real image pixel by pixel, by its split.
        measured: Images whose distance to the real ones was measured.
        near: Measured images that are as close to a training image as 1 % of held-out real images.
        threshold: That distance, in grey levels of 0 to 255 or in units of the features.
        median: Median distance of the measured images to the closest training image.
        held_out_median: The same of held-out real images.
        near_test: Measured images that are near copies of test images.
        control: Share of real training images that the check calls copies; 1 where it works.
    """

    space: Required[str]
    images: Required[int]
    exact: Required[dict[str, int]]
    measured: Required[int]
    near: Required[int]
    threshold: Required[float]
    median: Required[float]
    held_out_median: Required[float]
    near_test: int
    control: float


class SetNumbers(TypedDict):
    """What is measured of one set beside random real sets of its size.

    Attributes:
        features: What the measures are computed in.
        images: Stored images.
        views: Decoded images.
        measured: Decoded images that were measured, evenly spaced.
        measured_by_class: The same by class.
        draws: Random real sets beside it.
        classes: Names of the classes, in index order.
        measures: By name.
        copies: The copy check.
        labels: The check of the labels.
    """

    features: str
    images: int
    views: int
    measured: int
    measured_by_class: list[int]
    draws: int
    classes: list[str]
    measures: dict[str, Measure]
    copies: CopyNumbers
    labels: LabelNumbers


class FindingEntry(TypedDict):
    """A fault of a set, or of the data where ``set`` is None: a short ``kind``, a sentence, and how bad it is."""

    kind: str
    text: str
    severity: Severity
    set: str | None


class SplitCounts(TypedDict):
    """Images of each class, by split."""

    train: list[int]
    validation: list[int]
    test: list[int]


class SummaryData(TypedDict, total=False):
    """The real images of an evaluation."""

    name: str
    fingerprint: Required[str]
    counts: Required[SplitCounts]


class SummarySettings(TypedDict, total=False):
    """What readers use of a protocol's values."""

    steps: int | None
    width: int | None
    changed: list[str]


class Summary(TypedDict, total=False):
    """summary.json; see ``Evaluation``. Keys of newer versions are kept as they are."""

    protocol: str
    data: Required[SummaryData]
    seed: int
    rows: Required[list[Row]]
    scores: list[ScoreEntry]
    sets: dict[str, SetNumbers]
    findings: list[FindingEntry]
    command: str
    versions: dict[str, str]
    device: str
    settings: SummarySettings


class ContinualSummary(TypedDict, total=False):
    """continual.json; see ``ContinualEvaluation``."""

    protocol: str
    data: Required[SummaryData]
    seed: int
    classes: Required[list[int]]
    orders: Required[list[list[str]]]
    rows: Required[list[ContinualRow]]


SHARE, COUNT, TIME, DIFFERENCE = (0.0, 1.0), (0.0, 1e12), (0.0, 1e12), (-1e6, 1e6)
RANGES = {  # of all numbers of a row
    "ipc": (0.0, 1e9), "counts": COUNT, "accuracy": SHARE, "mean": SHARE, "std": SHARE, "per_class": SHARE,
    "ece": SHARE, "legacy_best": SHARE, "seconds": TIME, "synthesis_seconds": TIME, "shared_seconds": TIME,
    "bytes": (0.0, 1e18), "stored_images": COUNT, "decoded_images": COUNT, "synthesis_seeds": (1.0, 1e6),
    "ci95_vs_random": DIFFERENCE,
    "ci95_these_sets": DIFFERENCE, "ci95_vs_equal_bytes": DIFFERENCE, "ci95_vs_coded": DIFFERENCE,
}  # fmt: skip
PAIRS = ("ci95_vs_random", "ci95_these_sets", "ci95_vs_equal_bytes", "ci95_vs_coded")


def summary_problem(summary: Mapping[str, Any], schema: type = Summary) -> str:
    """What is wrong with the content of summary.json or continual.json: a field, what it is and what was expected."""
    if summary.get("format", 1) != 1:
        return f"format is {summary['format']!r}; this version reads 1"
    problem = mismatch(schema, dict(summary))
    if problem or schema is not Summary:
        return problem
    return next(filter(None, (_row_problem(f"rows.{i}", row) for i, row in enumerate(summary["rows"]))), "")


def read_summary(path: Path, schema: type = Summary) -> dict[str, Any]:
    """Read summary.json or continual.json.

    Raises:
        ArtifactError: there is none, or it is damaged; the message names the field.
    """
    fix = "Give the folder that `gendistill evaluate` or `gendistill run` wrote, copy it again, or make it again."
    found = read_json(path, kind="an evaluation", fix=fix)
    problem = summary_problem(found, schema)
    if problem:
        raise ArtifactError(f"{path} is damaged: {problem}. {fix}")
    return found


def _row_problem(place: str, row: Mapping[str, Any]) -> str:
    if "verdict" not in row:
        return f"it lacks {place}.verdict"
    if not row["accuracy"]:
        return f"{place}.accuracy is []; expected a number for every run"
    for key, (low, high) in RANGES.items():
        for number in _numbers(row.get(key)):
            if not low <= number <= high:
                return f"{place}.{key} is {number:g}; expected {low:g} to {high:g}"
    other = next((key for key in PAIRS if row.get(key) is not None and len(row[key]) != 2), None)
    return f"{place}.{other} has {len(row[other])} numbers; expected the two ends of an interval" if other else ""


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    return [v for v in (value if isinstance(value, list) else [value]) if v is not None]


LABELS = {
    "base": "generator, before minimax",
    "samples": "generator",
    "select": "+ selection",
    "refined": "+ refinement",
}
CHANGED = {"select": ", selected", "refined": ", refined"}
NAMED = {
    "random": "random real images",
    "full": "all real images",
    "kmeans": "k-means",
    "kcenter": "k-centre",
}


def row_label(row: Mapping[str, Any]) -> str:
    """What a reader calls a row, or an entry of the scores."""
    coded = row.get("image_format") if row.get("space") != CODED else None
    return f"{_label(row)} ({coded})" if coded else _label(row)


def _label(row: Mapping[str, Any]) -> str:
    """The same, whatever format the images are stored in."""
    if row["method"] == "generative":
        return LABELS.get(row["stage"], str(row["stage"]))
    if row["method"] == "random" and row.get("space"):
        return f"random images, {row['space']}"
    name = row.get("name") or NAMED.get(row["method"], row["method"])
    name += CHANGED.get(str(row.get("stage")), "") if row["method"] in NAMED else ""
    return f"{name} ({row['space']})" if row.get("space") else name


UNEVEN = 1.5  # a factor between classes, in test images, above which the accuracy needs the balanced one beside it


def has_uneven_test(result: Mapping[str, Any]) -> bool:
    """Whether the classes differ so much in test images that guessing the largest one pays."""
    counts = [n for n in ((result.get("data") or {}).get("counts") or {}).get("test") or () if n]
    return bool(counts) and max(counts) > UNEVEN * min(counts)


def balanced_accuracy(row: Mapping[str, Any]) -> float | None:
    """The mean accuracy over the classes that were tested, in [0, 1]."""
    known = [share for share in row.get("per_class") or () if share is not None]
    return sum(known) / len(known) if known else None


def without_twins(rows: Sequence[AnyRow]) -> list[AnyRow]:
    """The rows without the baselines that a set repeats: a k-means set and the k-means baseline are the same images."""
    keys = ("method", "accuracy", "per_class", *COMPARED)
    seen = [[row.get(key) for key in keys] for row in rows if row.get("set")]
    return [r for r in rows if r.get("set") or is_reference(r) or [r.get(key) for key in keys] not in seen]


RANDOM, FULL = "random", "full"
EQUAL_BYTES = "equal bytes"  # the ``space`` of random rows that are as large as a set in bytes, not in images
CODED = "equal bytes, coded"  # of photographs in the best image format, in at most the bytes of a set
COMPARED = ("ipc", "counts", "labels", "recipe", "network", "augment")  # what a row and its reference share


def is_reference(row: Mapping[str, Any]) -> bool:
    """Whether a row is of random images that the evaluation drew, as many of each class as a set has.

    Random images of equal bytes, and a set that somebody drew at random, are none.
    """
    return row["method"] == RANDOM and not is_sized_by_bytes(row) and not row.get("set")


def is_sized_by_bytes(row: Mapping[str, Any]) -> bool:
    """Whether a row is of photographs as many as fit into a set's bytes."""
    return row.get("space") in (EQUAL_BYTES, CODED)


def reference_of(row: Mapping[str, Any], rows: Iterable[AnyRow]) -> AnyRow | None:
    """The random row that a row of one evaluation is compared with; None where there is none."""
    return next((r for r in rows if is_reference(r) and all(r.get(k) == row.get(k) for k in COMPARED)), None)
