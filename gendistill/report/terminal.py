"""What commands print: an evaluation as text of at most 100 columns, and lines about sets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gendistill.errors import ArtifactError, printable
from gendistill.evaluation.result import ContinualEvaluation, Evaluation
from gendistill.evaluation.summary import (
    FindingEntry,
    Measure,
    Pair,
    Row,
    Score,
    ScoreEntry,
    SetNumbers,
    balanced_accuracy,
    has_uneven_test,
    row_label,
    without_twins,
)
from gendistill.evaluation.validation import NOISE
from gendistill.report.formatting import ROUNDING
from gendistill.report.sets import facts_of_evaluation
from gendistill.report.verdicts import headline, left_out, verdicts
from gendistill.surrogate.manifest import GateCounts, Manifest, coding_of, read_manifest, verify
from gendistill.surrogate.soft_labels import SoftLabels
from gendistill.surrogate.stored import StoredSet

COLUMNS_OF_TEXT = 100
WIDTH = 30  # of a row's name
MOST_FILES = 10  # that are named of a damaged set
SetName = tuple[int | None, str]  # images per class, and what the set is called


def format_evaluation(result: Evaluation) -> str:
    """Everything for the terminal: accuracies, scores, numbers of the sets, and findings."""
    names: dict[str, SetName] = {}
    for row in result.rows:
        hashes = row["set"] if isinstance(row["set"], list) else [row["set"]]
        names |= {one: (row["ipc"], row_label(row)) for one in hashes if one}
    parts = (table(result), score_table(result), set_table(result, names), finding_lines(result, names))
    return printable("\n\n".join(part.strip("\n") for part in parts if part), lines=True)


def verdict_sentence(result: Evaluation) -> str:
    """What the intervals say of the sets over all IPC."""
    rows = facts_of_evaluation(result.to_dict(), None, ()).rows
    return headline(verdicts(rows), left_out(rows))


def format_continual(result: ContinualEvaluation) -> str:
    """The rows after the last step, and their means over the steps."""
    last = [{**row, **row["steps"][-1]} for row in result.rows]
    average = [{**row, **row["average"]} for row in result.rows]
    heads = (f"After the last of {len(result.classes)} steps, {result.classes[-1]} classes:", "Mean over the steps:")
    return printable("\n".join([heads[0], table({"rows": last}), heads[1], table({"rows": average})]), lines=True)


def table(result: Mapping[str, Any]) -> str:
    """The rows of an evaluation by network and kind of labels, hard ones first; accuracies in per cent.

    Images are the stored ones, and how many they decode to where that is more.

    Args:
        result: An ``Evaluation``, or anything else with its ``rows``.
    """
    rows: list[Row] = sorted(without_twins(result["rows"]), key=lambda r: (r["ipc"] is None, r["ipc"] or 0))
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda r: _recipe(r) != "hard"):
        augmented = "augmented" if row.get("augment") else "not augmented"
        groups.setdefault((row["network"], f"labels {_recipe(row)}", augmented), []).append(row)
    differ = [len(set(names)) > 1 for names in zip(*groups, strict=True)]
    legacy, balanced, blocks = any(row.get("legacy_best") for row in rows), has_uneven_test(result), []
    for names, group in sorted(groups.items(), key=lambda item: _first(item[0][0], rows)):
        title = "; ".join(name for name, differs in zip(names, differ, strict=True) if differs)
        blocks.append(
            "\n".join(
                [
                    *([f"{title}:"] if title else []),
                    _head(legacy, balanced),
                    *(_line(r, legacy, balanced) for r in group),
                ]
            )
        )
    return "\n".join(["\n\n".join(blocks), *_notes(rows, balanced)])


def _first(network: str, rows: Sequence[Row]) -> int:
    return next(i for i, row in enumerate(rows) if row["network"] == network)


def _head(legacy: bool, balanced: bool) -> str:
    return (
        f"{'IPC':>4}  {'set':<{_width(balanced, legacy)}} {'images':>11} {'bytes':>7}  {'accuracy %':>12}"
        f"{'  balanced' if balanced else ''}{'  (best)' if legacy else ''}  {'95 % vs random':>16}  verdict"
    )


def _width(balanced: bool, legacy: bool) -> int:
    return WIDTH - 10 * balanced - 8 * legacy


def _line(row: Row, legacy: bool, balanced: bool) -> str:
    interval, label, verdict = row.get("ci95_vs_random"), row_label(row), row["verdict"].removesuffix(" than random")
    gain = f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}" if interval else ""
    seeds = f" x{row['synthesis_seeds']}" if row.get("synthesis_seeds", 1) > 1 else ""
    room = _width(balanced, legacy) - len(seeds)
    label = (label if len(label) <= room else label[: room - 1] + "…") + seeds
    fair = _fair(balanced_accuracy(row)) if balanced else ""
    best = _best(row.get("legacy_best")) if legacy else ""
    return (
        f"{row['ipc'] or '':>4}  {label:<{_width(balanced, legacy)}} {_images(row):>11} {_bytes(row):>7}  "
        f"{100 * row['mean']:5.1f} ± {100 * row['std']:4.1f}{fair}{best}  {gain:>16}  {verdict}"
    )


def _best(accuracies: Sequence[float] | None) -> str:
    return f"  ({100 * sum(accuracies) / len(accuracies):4.1f})" if accuracies else " " * 8


def _fair(balanced: float | None) -> str:
    return f"  {'' if balanced is None else f'{100 * balanced:.1f}':>8}"


def _images(row: Row) -> str:
    stored, decoded = row.get("stored_images"), row.get("decoded_images")
    if stored is None:
        return ""
    return _short(stored) if stored == decoded else f"{_short(stored)}→{_short(decoded or 0)}"


def _bytes(row: Row) -> str:
    found = row.get("bytes")
    return _short(sum(found.values()), "B") if found else ""


def _short(number: float, unit: str = "") -> str:
    """At most five characters before the unit: 999, 12.3k, 1.25M."""
    if number < 1000:
        return f"{number:g}{unit}"
    for prefix in "kMGT":
        number /= 1000
        if number < 999.5 or prefix == "T":
            return f"{number:.3g}{prefix}{unit}"
    raise AssertionError


def _notes(rows: Sequence[Row], balanced: bool) -> list[str]:
    """What the columns do not explain."""
    runs, cached = sum(len(row["accuracy"]) for row in rows), sum(row.get("cached", 0) for row in rows)
    notes = [_beside(row, "random images of equal bytes", e) for row in rows if (e := row.get("ci95_vs_equal_bytes"))]
    notes += [_beside(row, f"{row['coded']} in the same bytes", e) for row in rows if (e := row.get("ci95_vs_coded"))]
    if any(row.get("synthesis_seeds", 1) > 1 for row in rows):
        notes.append("xN: N synthesis seeds in one row, whose interval covers further seeds.")
    if balanced:
        notes.append("balanced: the mean over classes; the classes differ much in their number of test images.")
    if any(row.get("legacy_best") for row in rows):
        notes.append("(best): the highest of several tests along the way; no verdict uses it.")
    if cached:
        notes.append(f"{cached} of {runs} runs come from earlier evaluations (baseline_cache).")
    return ["", *map(_wrapped, notes)] if notes else []


def _beside(row: Row, name: str, ends: Pair) -> str:
    low, high = ends
    named = f"{row_label(row)} at IPC {row['ipc']}" + ("" if _recipe(row) == "hard" else f", labels {_recipe(row)}")
    return f"{named}, against {name}: {100 * low:+.1f} to {100 * high:+.1f}."


def _recipe(row: Row) -> str:
    return row.get("recipe") or "hard"


COLUMNS = {
    "kid": "KID",
    "precision": "prec.",
    "recall": "recall",
    "density": "density",
    "coverage": "cover.",
    "vendi": "Vendi",
    "representativeness": "repr.",
    "crowding": "crowd.",
}
HEADS = (*COLUMNS.values(), "agree.")
NEAR = 0.05  # share of near copies worth a line; 0.01 is what held-out images have


def set_table(result: Mapping[str, Any], names: Mapping[str, SetName]) -> str:
    """The numbers of each set below those of random real sets of its size; ``names`` are by content hash."""
    sets: dict[str, SetNumbers] = result.get("sets") or {}
    if not sets:
        return ""
    first = next(iter(sets.values()))
    lines = [
        _wrapped(
            f"The sets by {first['features']}: means over classes, beside {first['draws']} random real sets of "
            "equal size"
        ),
        _columns_line("IPC  set", HEADS),
    ]
    last: list[str] = []
    named = [(*names.get(key, (None, key[:12])), found) for key, found in sets.items()]
    for ipc, name, found in sorted(named, key=lambda item: item[0] or 0):
        values = _values(found)
        beside = [v["random"] for v in values if v["random"]]
        size = f" of {found['views']}" if found["views"] != found["images"] else ""  # of views, which are more
        random = [
            _columns_line(f"{ipc or '':>3}  random real sets{size}", [_number(r["mean"]) for r in beside]),
            _columns_line("   their spread", [_number(r["std"], "±") for r in beside]),
        ]
        lines += random if random != last else []
        last = random
        lines.append(_columns_line(f"   {name}", [_number(v["mean"]) for v in values]))
        lines += [f"       {line}" for line in _unusual(found)]
    return "\n".join(lines)


def _values(found: SetNumbers) -> list[Measure]:
    return [*(found["measures"][name] for name in COLUMNS), found["labels"]["hard"]["agreement"]]


def finding_lines(result: Mapping[str, Any], names: Mapping[str, SetName]) -> str:
    """A paragraph for each finding, errors first."""
    found = sorted(result.get("findings") or [], key=lambda f: f["severity"] != "error")
    return "\n".join(_wrapped(f"{f['severity'].upper()} {_where(f, names)}: {f['text']}") for f in found)


def _where(finding: FindingEntry, names: Mapping[str, SetName]) -> str:
    if finding["set"] is None:
        return "the data"
    ipc, name = names.get(finding["set"], (None, ""))
    return f"{ipc or '':>3}  {name}" if name else finding["set"][:12]


def _columns_line(name: str, values: Sequence[str]) -> str:
    name = name if len(name) <= 28 else f"{name[:27]}…"
    return f"{name:<28}" + "".join(f"{value:>8}" for value in values)


def _number(value: float | None, sign: str = "") -> str:
    value = 0.0 if value is not None and abs(value) < ROUNDING else value
    return "-" if value is None else f"{sign}{value:.2g}" if abs(value) < 0.1 else f"{sign}{value:.3g}"


def _unusual(found: SetNumbers) -> list[str]:
    """Copies of real images, where there are more than chance has, and a part alone that was measured."""
    copies, exact, lines = found["copies"], found["copies"]["exact"], []
    if found["measured"] < found["views"]:
        lines.append(f"measured: {found['measured']:,} of {found['views']:,} images")
    if exact["train"] or copies["near"] > NEAR * copies["measured"]:
        near = f"{copies['near']:,} of {copies['measured']:,} near"
        lines.append(f"copies of training images: {exact['train']:,} exact, {near} (control {copies['control']:.0%})")
    if exact["test"] or copies["near_test"]:
        lines.append(f"copies of test images: {exact['test']:,} exact, {copies['near_test']:,} near")
    return lines


def score_table(result: Mapping[str, Any]) -> str:
    """A line a score, under a heading; empty unless there are soft labels, or rows with and without augmentation."""
    entries: list[ScoreEntry] = result.get("scores") or []
    soft = any(entry["labels"] != "hard" for entry in entries)
    if not soft and not any(entry["ars"] for entry in entries):
        return ""
    several = len({entry["network"] for entry in entries}) > 1
    groups: dict[str, list[ScoreEntry]] = {}
    for entry in sorted(entries, key=lambda e: e["ipc"] or 0):
        title = f"labels {entry['recipe'] or 'hard'}" + (f"; {entry['network']}" if several else "")
        groups.setdefault(title, []).append(entry)
    lines = ["", "Scores from 0 to 1: higher is better; 0.269 is alpha = 0. HLR (lower is better) and IOR in points."]
    for title, group in groups.items():
        lines.append(f"{title}:")
        lines.append(f"{'IPC':>4}  {'set':<30} {'LRS':>13}  {'HLR':>6}  {'IOR':>6}  {'ARS':>13}")
        for entry in group:
            lrs = entry["lrs"]
            lines.append(
                f"{entry['ipc']:>4}  {row_label(entry):<30} {_score(lrs):>13}  {_points(lrs['hlr']):>6}"
                f"  {_points(lrs['ior']):>6}  {_score(entry['ars']):>13}"
            )
    missing = dict.fromkeys(sentence for entry in entries for sentence in entry["missing"])
    return "\n".join([*lines, *map(_wrapped, missing)])


def _wrapped(sentence: str) -> str:
    """In lines of the usual width, but with paths and names whole."""
    whole = textwrap.TextWrapper(
        COLUMNS_OF_TEXT, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return whole.fill(sentence)


def _score(found: Score | None) -> str:
    if found is None or found["score"] is None:
        return ""
    return f"{found['score']:.3f}" + ("" if found["std"] is None else f" ± {found['std']:.3f}")


def _points(gain: float | None) -> str:
    return "" if gain is None else f"{100 * gain:+.1f}"


def describe_sets(target: Path) -> tuple[str, dict[str, Any]]:
    """A line of each set below ``target``, with what made it and how far it moved; and the same as data."""
    found = {path.parent: read_manifest(path.parent) for path in sorted(target.rglob("manifest.json"), key=_by_ipc)}
    width = max(len(str(folder)) for folder in found)
    lines = [
        f"{folder!s:<{width}}  {made['stored_images']:,} images of {len(made['classes'])} classes, "
        f"{_short(sum(made['bytes'].values()), 'B')}{_coding(made)}"
        for folder, made in found.items()
    ]
    sets = {
        str(folder): {
            "ipc": made["ipc"],
            "images": made["stored_images"],
            "bytes": made["bytes"],
            "w2": made.get("w2"),
            "validation": made.get("validation"),
        }
        for folder, made in found.items()
    }
    more = (*time_lines(target), *w2_lines(target), *validation_lines(target))
    return "\n".join([*lines, *more]), {"output_dir": str(target), "sets": sets}


def _coding(manifest: Manifest) -> str:
    """How the images are coded, where they are not PNG."""
    return f", {coding_of(manifest)}" if "image_format" in manifest else ""


def _by_ipc(path: Path) -> tuple[str, int, str]:
    """Folders by the number at the end of their names."""
    stem, _, number = path.parent.name.rpartition("-")
    return (str(path.parent.parent), int(number), "") if stem and number.isdigit() else (str(path.parent), 0, stem)


def w2_lines(target: Path) -> Iterator[str]:
    """A line of each refined set below ``target``: squared W2 in the ground space, mean over the classes."""
    folders = sorted(target.glob("ipc-*/manifest.json"), key=lambda path: int(path.parent.name.removeprefix("ipc-")))
    for path in folders:
        manifest = read_manifest(path.parent)
        if "w2" in manifest:
            yield f"{path.parent.name}: {_distance(manifest['w2'])}{_gate(manifest.get('gate'))}."


def _distance(w2: dict[str, float]) -> str:
    before, after = w2["before"], w2["after"]
    moved = f"{before:.3g}" if after == before else f"{before:.3g} -> {after:.3g}"
    rose = ", farther than they began" if after > before else ""
    later = [f"{w2[name]:.3g} once {name}" for name in ("packed", "matched", "stored") if name in w2]
    return ", ".join([f"W2^2 to the real images {moved}{rose}", *later])


def _gate(gate: GateCounts | None) -> str:
    if gate is None:
        return ""
    return f"; the gate kept {gate['kept']} of {gate['images']} images and refused {gate['refused_classes']} classes"


def validation_lines(target: Path) -> Iterator[str]:
    """A line of each set below ``target`` that was compared with random images when it was made."""
    for path in sorted(target.glob("ipc-*/manifest.json"), key=_by_ipc):
        found = read_manifest(path.parent).get("validation")
        if found:
            words = {"start": "its images before", "random": "random real images"}
            others = ", ".join(f"on {text} {100 * found[name]:.1f} %" for name, text in words.items() if name in found)
            yield (
                f"{path.parent.name}: a ConvNet with instance norm, trained on it, gets {100 * found['set']:.1f} % of "
                f"the validation images right, {others}.{_worse(found, words)}"
            )


def _worse(found: Mapping[str, float], words: Mapping[str, str]) -> str:
    """Than what a set is clearly worse, after one training each."""
    than = [text for name, text in words.items() if name in found and found["set"] < found[name] - NOISE]
    return f" Worse than {' and '.join(than)}." if than else ""


def time_lines(target: Path) -> Iterator[str]:
    """A line of each set's time by part, where it has parts; sets that were made together have the same."""
    for path in sorted(target.glob("ipc-*/manifest.json")):
        made = read_manifest(path.parent)
        parts, total = made["seconds"], made["seconds"].pop("distill", 0)
        if "iterations" in made and parts:
            shares = ", ".join(f"{name} {100 * value / max(total, 1e-9):.0f} %" for name, value in parts.items())
            yield f"{path.parent.name}: {made['iterations']} iterations in {total:.0f} s: {shares}."


def label_line(folder: Path) -> str:
    """Bytes of the labels beside those of the images, and the teacher's where it is needed to train."""
    manifest = read_manifest(folder)
    sizes, soft = manifest["bytes"], SoftLabels.load(folder, manifest["decoded_images"])
    text = (
        f"{folder}: {sizes['labels']:,} bytes of soft labels beside {sizes['images']:,} bytes of images "
        f"({sizes['labels'] / sizes['images']:.2g} x)"
    )
    if soft is not None and soft.mode == "online":
        text += f"; the teacher of {soft.teacher['bytes']:,} bytes makes them again while training"
    return text


def export_line(target: Path, sets: Sequence[StoredSet], format: str) -> str:
    """What an export holds."""
    files = [path for path in target.rglob("*") if path.is_file()]
    images = sum(len(stored.paths) for stored in sets)
    configs = ", ".join(stored.config for stored in sets)
    size = sum(path.stat().st_size for path in files)
    return f"{target}: {configs} as {format}, {images} images, {len(files)} files, {size:,} bytes"


def verify_text(folder: Path) -> tuple[bool, str]:
    """(whether a set is as it was made, what it is or what is wrong with it)."""
    try:
        manifest, problems = read_manifest(folder), verify(folder)
    except ArtifactError as error:  # other sets are checked all the same
        return False, str(error)
    origin = printable(f"made by: {manifest.get('command', 'unknown')}")
    if problems:
        more = [f"and {len(problems) - MOST_FILES} more"] if len(problems) > MOST_FILES else []
        lines = [
            f"{folder} is not as it was made; {len(problems)} file(s):",
            *map(printable, problems[:MOST_FILES]),
            *more,
            origin,
        ]
        return False, "\n  ".join(lines)
    return True, f"{folder}: complete and unchanged\n  {_contents(manifest)}\n  {origin}"


def _contents(manifest: Manifest) -> str:
    size, decoded = manifest["image_size"], manifest["decoded_images"]
    views = f" decoded to {decoded}" if manifest["factor"] != 1 else ""
    return (
        f"{manifest['stored_images']} images{views}, {len(manifest['classes'])} classes, IPC {manifest['ipc']}, "
        f"{size}x{size} px{_coding(manifest)}; {manifest['bytes']['images']:,} bytes of images, "
        f"{manifest['bytes']['labels']:,} of soft labels; checksum {manifest['checksums']}"
    )
