"""The sets and real images behind a report: read where they still are, and named where they are not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from gendistill import runtime
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.errors import ArtifactError, GendistillError
from gendistill.evaluation.baselines import random_draw
from gendistill.evaluation.copies import FEATURES, PIXELS
from gendistill.evaluation.inputs import size_of
from gendistill.evaluation.projection import Projection, pixels, project_sets
from gendistill.evaluation.summary import LABELS, RANDOM, row_label
from gendistill.networks.feature_extractors import features_of, saved_reference_network
from gendistill.networks.teacher import FILE, Teacher
from gendistill.report.formatting import RANDOM_LABEL
from gendistill.report.results import EvaluatedRun, ReportRow, hashes, merge_rows, order_rows
from gendistill.report.run_folder import Finished
from gendistill.surrogate.image_folder import read_plain
from gendistill.surrogate.image_formats import PNG
from gendistill.surrogate.set import MANIFEST, SurrogateSet

SETS = {
    "base": Path("samples") / "base",
    "samples": Path("samples"),
    "select": Path("refined") / "selected",
    "refined": Path("refined"),
}
MOST_PANELS = 8
TRAINED = "reference network features"  # of a network that the evaluation trained on the real images
Sets = dict[int, dict[str, SurrogateSet]]


def gather(found: Sequence[Finished], data: RealData | None, reasons: Sequence[str] = ()) -> ReportFacts:
    """Everything that the page shows, of folders with the same ``data``; ``reasons`` say why there are none."""
    names = set_names([one.path for one in found])
    runs = [_facts(one, name, data, reasons) for one, name in zip(found, names, strict=True)]
    if data is None:
        return ReportFacts(runs=runs, data=None)
    features = open_feature_extractor(found, data) if any(run.sets for run in runs) else None
    return ReportFacts(runs=runs, data=data, projection=project(runs, data, features), features=features)


def _facts(found: Finished, name: str, data: RealData | None, reasons: Sequence[str]) -> RunFacts:
    sets, lost = sets_of(found, data)
    return RunFacts(
        name=name,
        folder=str(found.path),
        summary=_labelled(found.summary),
        evaluated_sets=dict.fromkeys(found.hashes) if found.is_run else names_of(found),
        sets=sets,
        is_run=found.is_run,
        missing=[*lost, *reasons],
        records=found.records,
        config=found.config,
        date=found.date,
    )


def facts_of_evaluation(summary: Mapping[str, Any], data: RealData | None, sets: Sequence[SurrogateSet]) -> ReportFacts:
    """Everything that the page shows of one evaluation in memory; distances are between pixels."""
    if data and not data.is_of(summary["data"]["fingerprint"]):
        raise ArtifactError(
            f"The images of {data.name} (fingerprint {data.fingerprint()}) are not those of the evaluation "
            f"({summary['data']['fingerprint']}). Give the --data options of `evaluate`."
        )
    by_hash = {made.content_hash(): made for made in sets}
    run = RunFacts(
        name="evaluation",
        summary=_labelled(summary),
        evaluated_sets=dict.fromkeys(content for row in summary["rows"] for content in hashes(row)),
        sets=_by_size(by_hash, {}, data, summary["seed"]),
        is_run=False,
        date=date.today().isoformat(),
    )
    return ReportFacts(runs=[run], data=data, projection=project([run], data, None) if data else None)


def _labelled(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**summary, "rows": [{**row, "label": row_label(row)} for row in summary["rows"]]}


def find_data(found: Sequence[Finished]) -> tuple[RealData | None, list[str]]:
    """(the real images that all of the folders were made from, or sentences that say why they are not there).

    A run knows its images, so that it is an error if they are missing.

    Raises:
        ArtifactError: a run's images are others now.
        GendistillError: a run's images cannot be read.
    """
    reasons: dict[str, None] = {}
    for one in sorted(found, key=lambda f: not f.is_run):
        config = one.data_config
        if config is None:
            reasons[f"The command of {one.path} does not say where its real images are."] = None
            continue
        if not one.is_run and not _is_here(config.name):
            reasons[f"The real images, {config.name}, are not here: no projection, no closest pairs."] = None
            continue
        try:
            data = load_data(config)
            check_data(one, data)
            return data, []
        except GendistillError as error:
            if one.is_run:
                raise
            reasons[str(error)] = None
    return None, list(reasons)


def _is_here(name: str) -> bool:
    """Whether data can be read without the network: digits, a folder, or what the Hub's cache holds."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return name == "digits" or Path(name).is_dir() or cached.is_dir()


def check_data(found: Finished, data: RealData) -> None:
    """Refuse other images than the folder was made from."""
    if not data.is_of(found.fingerprint):
        raise ArtifactError(
            f"The images at {data.name} are not those that {found.path} was made from (fingerprint "
            f"{data.fingerprint()}, expected {found.fingerprint}). Put the old ones back, or make the run again."
        )


def load_sets(run: Path, data: RealData, ipc: int, seed: int) -> dict[str, SurrogateSet]:
    """The run's sets of one IPC by label, in the order of the stages, after the first evaluated random draw."""
    folders = {LABELS[stage]: run / path / f"ipc-{ipc}" for stage, path in SETS.items()}
    found = {label: SurrogateSet.load(path) for label, path in folders.items() if (path / MANIFEST).is_file()}
    if not found:
        return {}
    return beside(found, data, seed)


def beside(sets: dict[str, SurrogateSet], data: RealData, seed: int) -> dict[str, SurrogateSet]:
    """The sets of one IPC after the first random draw that was evaluated: of as many images by class as they have, of
    several numbers the equal ones, else the most."""
    counts = min((made.counts for made in sets.values()), key=lambda c: (len(set(c)) > 1, -sum(c)))
    drawn = random_draw(data, tuple(counts), seed, 0)
    random = SurrogateSet(drawn.pixels, drawn.labels, data.classes, {"method": RANDOM, "stage": None})
    return {RANDOM_LABEL: random, **sets}


def sets_of(found: Finished, data: RealData | None) -> tuple[Sets, list[str]]:
    """(by IPC and label, what is left of the folder's sets; sentences on those that are not)."""
    seed = found.summary["seed"]
    if found.is_run:
        sizes = sorted({row["ipc"] for row in found.summary["rows"] if row["ipc"] is not None})
        assert data is not None  # or find_data had raised
        return {ipc: made for ipc in sizes if (made := load_sets(found.path, data, ipc, seed))}, []
    read = {content: one for content, path in found.surrogates.items() if (one := _load(path, content, data))}
    return _by_size(read, names_of(found), data, seed), _lost(found, read, data)


def _by_size(sets: dict[str, SurrogateSet], names: dict[str, str | None], data: RealData | None, seed: int) -> Sets:
    """Sets by content hash as sets by IPC and label, random real images first where the real images are known."""
    labels = _labels(sets, names)
    found: Sets = {}
    for content, one in sets.items():
        found.setdefault(size_of(one), {})[labels[content]] = one
    if data:
        found = {ipc: beside(made, data, seed) for ipc, made in found.items()}
    return dict(sorted(found.items()))


def names_of(found: Finished) -> dict[str, str | None]:
    """By content hash a short name for every set that was evaluated: its folder's, without ``ipc-N``."""
    stems = {
        content: path.parent if re.fullmatch(r"ipc-\d+", path.name) else path
        for content, path in found.surrogates.items()
    }
    distinct = list(dict.fromkeys(path.resolve() for path in stems.values()))
    names = dict(zip(distinct, set_names(distinct), strict=True)) if distinct else {}
    return {content: names[stems[content].resolve()] if content in stems else None for content in found.hashes}


def open_feature_extractor(found: Sequence[Finished], data: RealData) -> FeatureSource | None:
    """Features of the first teacher that is there, else of a network that an evaluation trained on the real images."""
    teacher = next((f.teacher for f in found if f.teacher and (f.teacher / FILE).is_file()), None)
    if teacher is not None:
        return FeatureSource(
            FEATURES, features_of(Teacher.from_pretrained(teacher).network.to(runtime.device()).eval())
        )
    network = next((n for f in found if (n := saved_reference_network(data, f.path)) is not None), None)
    note = "The reference network was trained on the real images by the evaluation."
    return None if network is None else FeatureSource(TRAINED, features_of(network), note)


def project(runs: Sequence[RunFacts], data: RealData, features: FeatureSource | None) -> Projection | None:
    """The sets of one run at its largest IPC, or the last one of each of several, among the training images.

    By PCA of the features of ``open_feature_extractor``, else of pixels.
    """
    largest = [(run, run.sets[max(run.sets)]) for run in runs if run.sets]
    if not largest:
        return None
    if len(largest) == 1:
        shown = {label: made.split for label, made in largest[0][1].items()}
    else:
        shown = {}
        for run, sets in largest:
            label, last = list(sets.items())[-1]
            shown |= {f"{run.name}, IPC {max(run.sets)}: {label}": last.split}
    shown = dict(list(shown.items())[:MOST_PANELS])
    if features is None:
        return project_sets(data, shown, pixels, space=PIXELS)
    return project_sets(data, shown, features.embed, space=features.space)


def _load(path: Path, content: str, data: RealData | None) -> SurrogateSet | None:
    """The set of a folder if it is still the evaluated one; plain folders are read in the size of the real images."""
    try:
        if (path / MANIFEST).is_file():
            made = SurrogateSet.load(path)
        elif data and path.is_dir():
            made = read_plain(path, data.classes, data.channels, data.image_size)
        else:
            return None
    except (GendistillError, OSError):
        return None
    return made if made.content_hash() == content else None


def _lost(found: Finished, read: Collection[str], data: RealData | None) -> list[str]:
    """Sentences on the sets that are not pictured."""
    gone = [content for content in found.hashes if content not in read]
    paths = {content: path for content, path in found.surrogates.items() if content in gone}
    plain = [c for c, path in paths.items() if not data and path.is_dir() and not (path / MANIFEST).is_file()]
    several = f"{len(found.hashes)} sets"
    lost = (
        f"{len(gone) - len(plain)} of its {several} are no longer in their folders, or have changed; they are not "
        "pictured."
    )
    unread = (
        f"{len(plain)} of its {several} are plain folders, which are read as large as the real images; without these "
        "they are not pictured."
    )
    return [lost] * (len(gone) > len(plain)) + [unread] * bool(plain)


def _labels(sets: dict[str, SurrogateSet], names: dict[str, str | None]) -> dict[str, str]:
    """Called as their rows are, with their short names where another of that IPC is called the same."""
    coded = {
        content: {} if made.coding == PNG else {"image_format": str(made.coding)} for content, made in sets.items()
    }
    labels = {c: row_label({"method": "unknown", "stage": None, **made.meta, **coded[c]}) for c, made in sets.items()}
    called = Counter((labels[content], size_of(made)) for content, made in sets.items())
    clear = {c for c, made in sets.items() if called[labels[c], size_of(made)] == 1 and labels[c] != RANDOM_LABEL}
    return {c: label if c in clear else f"{label}, {names.get(c) or c[:8]}" for c, label in labels.items()}


def set_names(paths: Sequence[Path]) -> list[str]:
    """A short name for every folder, fit for file names: its own, with as many parents' as tell all apart.

    Raises:
        ArtifactError: a folder is given twice.
    """
    parts = [path.resolve().parts for path in paths]
    twice = [str(path) for i, path in enumerate(paths) if parts[i] in parts[:i]]
    if twice:
        raise ArtifactError(f"{twice[0]} is given twice; expected every surrogate set once.")
    for depth in range(1, max(map(len, parts)) + 1):
        names = [re.sub(r"[^\w.=+-]+", "_", "-".join(part[-depth:])) for part in parts]
        if len({name.casefold() for name in names}) == len(names):
            return names
    return [f"{i + 1}-{name}" for i, name in enumerate(names)]


def merged_versions(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The version of every library; several where the stages ran with different ones."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, number in record.get("versions", {}).items():
            found.setdefault(name, {})[number] = None
    return {name: ", ".join(numbers) for name, numbers in found.items()}


@dataclass(frozen=True)
class FeatureSource:
    """``embed``: uint8 images (B,C,H,W) -> features (B,D), which ``space`` names; ``note`` is a sentence on them."""

    space: str
    embed: Callable[[Tensor], Tensor]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the report shows of one run, or of one evaluation.

    Attributes:
        name: Short name that tells it from the others.
        summary: Its summary.json, with a ``label`` in every row.
        date: When it ended.
        folder: Where it is; empty for an evaluation in memory.
        evaluated_sets: By content hash, the short names of the sets that were evaluated, None where they need none.
        sets: By IPC, the sets of the stages in their order, by label; the last one is the run's product.
        is_run: Not an evaluation, of which every set is a product.
        missing: Sentences that say which pictures could not be shown, and why.
        records: stage.json of every stage that is there, in the order of the run.
        config: The text of config.yaml.
    """

    name: str
    summary: Mapping[str, Any]
    date: str
    folder: str = ""
    evaluated_sets: dict[str, str | None] = field(default_factory=dict)
    sets: dict[int, dict[str, SurrogateSet]] = field(default_factory=dict)
    is_run: bool = True
    missing: Sequence[str] = ()
    records: Sequence[Mapping[str, Any]] = ()
    config: str = ""

    @property
    def evaluated(self) -> EvaluatedRun:
        return EvaluatedRun(self.name, self.summary, self.evaluated_sets)

    @property
    def commands(self) -> list[str]:
        """Each once, in the order of the stages."""
        found = [r["command"] for r in [*self.records, self.summary] if "command" in r]
        return list(dict.fromkeys(found))

    @property
    def versions(self) -> dict[str, str]:
        return merged_versions([*self.records, self.summary])


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What the report shows; ``data`` is None where the real images were not found.

    ``projection`` is of the sets at one IPC, beside the training images; distances are between ``features``, or
    pixels.
    """

    runs: Sequence[RunFacts]
    data: RealData | None
    projection: Projection | None = None
    features: FeatureSource | None = None

    @cached_property
    def rows(self) -> list[ReportRow]:
        """Those of all runs, each once, in order and with colours."""
        return order_rows(merge_rows([run.evaluated for run in self.runs]))

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, where anything that was read knows them."""
        if self.data:
            return self.data.classes
        sets = [made for run in self.runs for by_label in run.sets.values() for made in by_label.values()]
        return sets[0].classes if sets else ()
