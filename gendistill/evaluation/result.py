"""The result of an evaluation: in memory, as files, as a pandas table, in a notebook and as a page."""

from __future__ import annotations

import csv
import html
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from gendistill.errors import ArtifactError
from gendistill.evaluation.summary import (
    ContinualRow,
    ContinualSummary,
    FindingEntry,
    Row,
    ScoreEntry,
    SetNumbers,
    Summary,
    balanced_accuracy,
    has_uneven_test,
    read_summary,
    row_label,
    summary_problem,
    without_twins,
)
from gendistill.io import write_json, write_text

if TYPE_CHECKING:
    from pandas import DataFrame

    from gendistill.data.dataset import DataFacts, RealData
    from gendistill.surrogate.set import SurrogateSet

TEXT = ("method", "name", "space", "stage", "labels", "recipe", "augment", "network", "verdict", "step")


class _Result(Mapping[str, Any]):
    """What both tasks share. The keys of the mapping are those of the JSON file."""

    JSON: ClassVar[str]  # names of the two files in a folder
    SCHEMA: ClassVar[type]
    CSV: ClassVar[str]
    COLUMNS: ClassVar[tuple[str, ...]]  # of the CSV file and of ``to_pandas``
    protocol: str
    data: DataFacts
    seed: int
    rows: Sequence[Any]

    def __getitem__(self, key: str) -> Any:
        return vars(self)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def __repr__(self) -> str:
        about = f"protocol={self.protocol!r}, data={self.data.get('name')!r}, seed={self.seed}"
        return f"{type(self).__name__}({about}, {len(self.rows)} rows)"

    def _repr_html_(self) -> str:
        """The rows as a table for a notebook, accuracies in per cent."""
        about = f"Protocol {self.protocol} on {self.data.get('name')}, seed {self.seed}"
        return f"<p>{html.escape(about)}</p>" + self._shown().to_html(index=False, border=0, na_rep="")

    @abstractmethod
    def _shown(self) -> DataFrame:
        """What a notebook shows of the rows."""

    @abstractmethod
    def _records(self) -> Sequence[Mapping[str, object]]:
        """The lines of the CSV file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the JSON file holds them."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; keys that this version does not know are left out.

        Raises:
            ArtifactError: it is no summary of an evaluation.
        """
        problem = summary_problem(record, cls.SCHEMA)
        if problem:
            raise ArtifactError(f"This is no content of {cls.JSON}: {problem}.")
        own = fields(cls)  # type: ignore[arg-type]
        values = {"protocol": "unknown", "seed": 0, **{f.name: record[f.name] for f in own if f.name in record}}
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` or the command line wrote: the JSON file, or the folder of `evaluate` or `run`.

        Raises:
            ArtifactError: there is no such file, or it holds something else.
        """
        place = Path(path)
        if place.is_dir():
            inside = (place / cls.JSON, place / "evaluation" / cls.JSON)
            place = next((file for file in inside if file.is_file()), inside[0])
        return cls.from_dict(read_summary(place, cls.SCHEMA))

    def save(self, folder: str | Path) -> Path:
        """Write the JSON file, and the rows once more as a CSV file; returns the JSON file's path."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        lines = StringIO(newline="")
        writer = csv.DictWriter(lines, self.COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._records())
        write_text(place / self.CSV, lines.getvalue())
        write_json(place / self.JSON, self.to_dict(), hashed=True)
        return place / self.JSON

    def to_pandas(self) -> DataFrame:
        """One line for each line of the CSV file, with its columns; see ``COLUMNS``."""
        import pandas as pd

        frame = pd.DataFrame(self._records(), columns=list(self.COLUMNS))
        for name in frame.columns.difference(TEXT):
            frame[name] = pd.to_numeric(frame[name])
        return frame.astype({name: "Int64" for name in ("ipc", "classes") if name in frame})


INTERVALS = {
    "ci95_vs_random": "",
    "ci95_these_sets": "these_sets_",
    "ci95_vs_equal_bytes": "equal_bytes_",
    "ci95_vs_coded": "coded_",
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation(_Result):
    """The result of ``gendistill.evaluate``.

    A mapping too, with the keys of summary.json: ``result["rows"]`` is ``result.rows``.

    Attributes:
        protocol: Name of the protocol.
        data: Name, fingerprints and counts of the real images.
        seed: The seed of the random draws and of the coresets.
        rows: One entry for each set or baseline, kind of labels, network and choice of augmentation.
        scores: Label-robust and augmentation-robust scores.
        sets: What was measured of the sets, by content hash.
        findings: Faults of the sets and of the data.
        command: The command line of the process.
        versions: Versions of the libraries.
        device: The device that trained.
        settings: The protocol's values with those that were changed.

    Example:
        >>> result = gendistill.evaluate(data, [made])
        >>> result.to_pandas()[["method", "ipc", "mean", "low", "high"]]
        >>> result.save("evaluation")
        >>> result.report("report.html")
    """

    JSON = "summary.json"
    SCHEMA = Summary
    CSV = "summary.csv"
    COLUMNS = (
        "method", "name", "space", "stage", "ipc", "labels", "recipe", "augment", "network", "mean", "std",
        "std_within", "std_between", "low", "high", "these_sets_low", "these_sets_high", "equal_bytes_low",
        "equal_bytes_high", "coded_low", "coded_high", "verdict", "ece", "legacy_best", "runs", "cached",
        "synthesis_seeds", "stored_images", "decoded_images", "bytes_images", "bytes_labels", "seconds",
        "synthesis_seconds",
    )  # fmt: skip

    protocol: str
    data: DataFacts
    seed: int
    rows: list[Row]
    scores: list[ScoreEntry] = field(default_factory=list)
    sets: dict[str, SetNumbers] = field(default_factory=dict)
    findings: list[FindingEntry] = field(default_factory=list)
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    settings: dict[str, object] = field(default_factory=dict)

    def report(self, path: str | Path, *, data: RealData | None = None, sets: Sequence[SurrogateSet] = ()) -> Path:
        """Write one HTML page that loads nothing else.

        Args:
            path: The file to write.
            data: The real images; with ``sets`` the page shows the closest pairs and a projection.
            sets: The sets that were evaluated, for their images.

        Returns:
            The path.

        Raises:
            ArtifactError: ``data`` are other images than those of the evaluation.
        """
        page = import_module("gendistill.report.page")  # by name, for that room imports this one
        written: Path = page.write_evaluation_page(self.to_dict(), path, data=data, sets=sets)
        return written

    def _shown(self) -> DataFrame:
        rows = without_twins(self.rows)
        frame = replace(self, rows=rows).to_pandas()
        frame.insert(0, "set", [row_label(row) for row in rows])
        frame["ipc"] = [row["ipc"] or "" for row in rows]
        frame["images"] = frame["stored_images"]
        frame["accuracy %"] = [_percent(row) for row in rows]
        frame["balanced %"] = ["" if (fair := balanced_accuracy(row)) is None else f"{100 * fair:.1f}" for row in rows]
        frame["95 % vs random"] = [_points(row) for row in rows]
        frame["labels"] = frame["recipe"].fillna("hard")
        differing = [name for name in ("labels", "augment", "network") if frame[name].nunique() > 1]
        balanced = ["balanced %"] * has_uneven_test(self)
        return frame[["ipc", "set", *differing, "images", "accuracy %", *balanced, "95 % vs random", "verdict"]]

    def _records(self) -> Sequence[Mapping[str, object]]:
        return [flat_row(row) for row in self.rows]


def flat_row(row: Row) -> Mapping[str, Any]:
    """The row with its pairs as columns and the means of its lists."""
    plain: Mapping[str, Any] = row
    ends: dict[str, float | None] = {}
    for name, prefix in INTERVALS.items():
        ends[f"{prefix}low"], ends[f"{prefix}high"] = plain.get(name) or (None, None)
    means: dict[str, float] = {
        name: sum(plain[name]) / len(plain[name]) for name in ("ece", "legacy_best") if plain.get(name)
    }
    parts = {f"bytes_{kind}": size for kind, size in (row.get("bytes") or {}).items()}
    return {**row, **means, **parts, **ends, "runs": len(row["accuracy"])}


def _percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}"


def _points(found: Mapping[str, Any]) -> str:
    ends = found.get("ci95_vs_random")
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}" if ends else ""


class LabelledRow(ContinualRow):
    """A row with what readers call it."""

    label: str


def label_rows(rows: Sequence[ContinualRow]) -> list[LabelledRow]:
    """The rows with a ``label`` for readers, numbered where several of an IPC have the same."""
    seen: Counter[tuple[int | None, str]] = Counter()
    found: list[LabelledRow] = []
    for row in rows:
        name = row_label(row)
        seen[row["ipc"], name] += 1
        times = seen[row["ipc"], name]
        found.append({**row, "label": name if times == 1 else f"{name} ({times})"})
    return found


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ContinualEvaluation(_Result):
    """The result of ``gendistill.evaluate_continual``; see ``Evaluation`` for what the two share.

    Attributes:
        classes: How many classes have arrived after each step.
        orders: Names of the classes in the order of their arrival, for every run.
        rows: One entry for each set or baseline.
    """

    JSON = "continual.json"
    SCHEMA = ContinualSummary
    CSV = "continual.csv"
    COLUMNS = (
        "method", "space", "stage", "ipc", "labels", "augment", "network", "step", "classes", "mean", "std", "low",
        "high", "verdict",
    )  # fmt: skip

    task: Literal["continual"] = "continual"
    protocol: str
    data: DataFacts
    seed: int
    classes: list[int]
    orders: list[list[str]]
    rows: list[ContinualRow]
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    settings: dict[str, object] = field(default_factory=dict)

    def report(self, path: str | Path) -> Path:
        """Write one HTML page with the accuracies step by step, which loads nothing else; returns its path."""
        page = import_module("gendistill.report.page")  # by name, for that room imports this one
        write_text(Path(path), page.render_continual({**self, "rows": label_rows(self.rows)}))
        return Path(path)

    def _shown(self) -> DataFrame:
        import pandas as pd

        records = []
        for row in label_rows(self.rows):
            steps = {f"{n} classes": _percent(row["steps"][i]) for i, n in enumerate(self.classes)}
            average = row["average"]
            about = {"95 % vs random": _points(average), "verdict": average["verdict"]}
            records.append({"ipc": row["ipc"], "set": row["label"], **steps, "average": _percent(average), **about})
        return pd.DataFrame(records)

    def _records(self) -> Sequence[Mapping[str, object]]:
        lines = []
        for row in self.rows:
            steps = [(i + 1, n, row["steps"][i]) for i, n in enumerate(self.classes)]
            for step, count, found in [*steps, ("average", None, row["average"])]:
                low, high = found.get("ci95_vs_random") or (None, None)
                lines.append({**row, **found, "step": step, "classes": count, "low": low, "high": high})
        return lines
