"""Small data, sets, rows, summaries and finished runs to make reports of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from gendistill.data.dataset import RealData, Split
from gendistill.data.pixels import to_pil
from gendistill.data.sources import load_data
from gendistill.evaluation.evaluator import with_verdict
from gendistill.surrogate.set import SurrogateSet

CLASSES = ("<b>x</b>", "zebra")
RANDOM = [0.50, 0.54, 0.52]


def make_data(classes: tuple[str, ...] = CLASSES, size: int = 8, channels: int = 1) -> RealData:
    rng = torch.Generator().manual_seed(0)
    splits = []
    for count in (12, 4, 4):
        images = torch.randint(0, 256, (count * len(classes), channels, size, size), generator=rng, dtype=torch.uint8)
        splits.append(Split(images, torch.arange(len(classes)).repeat_interleave(count)))
    train, validation, test = splits
    return RealData("tiny", classes, train, validation, test)


def make_set(data: RealData, ipc: int, stage: str, *, copies: bool = False) -> SurrogateSet:
    """``ipc`` training images of every class, inverted unless they are to be copies."""
    picked = data.train.take(torch.cat([data.train.of_class(c)[:ipc] for c in range(len(data.classes))]))
    images = picked.images if copies else 255 - picked.images
    return SurrogateSet(images, picked.labels, data.classes, {"method": "generative", "stage": stage, "stages": []})


def make_row(
    method: str, stage: str | None, ipc: int | None, accuracy: list[float], space: str | None = None
) -> dict[str, Any]:
    values = torch.tensor(accuracy)
    return {
        "method": method, "stage": stage, "ipc": ipc, "labels": "hard", "augment": False, "network": "convnet",
        "space": space, "accuracy": accuracy, "mean": float(values.mean()), "std": float(values.std()), "seconds": 1.0,
    }  # fmt: skip


def make_summary(data: RealData, gain: float, ipcs: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """Refined is ``gain`` above random at the smallest IPC and level with it at the others."""
    rows = [make_row("full", None, None, [0.97, 0.98, 0.98])]
    for ipc in ipcs:
        extra = gain if ipc == min(ipcs) else 0.0
        noise = [0.01, -0.01, 0.0]
        refined = [a + extra + n for a, n in zip(RANDOM, noise, strict=True)]
        rows += [
            make_row("random", None, ipc, RANDOM), make_row("kmeans", None, ipc, [a + 0.1 for a in RANDOM], "pixels"),
            make_row("generative", "refined", ipc, refined),
        ]  # fmt: skip
    return {
        "protocol": "gendistill", "data": data.describe(), "seed": 3, "rows": [with_verdict(row, rows) for row in rows],
        "device": "cpu", "settings": {"runs": 3, "steps": 5, "network": "convnet", "width": 8},
    }  # fmt: skip


def make_run(
    run: Path, data: RealData, *, gain: float = 0.2, ipcs: tuple[int, ...] = (1, 2), copies: bool = False
) -> Path:
    """A finished run without base sets, with the stage records of refinement and teacher."""
    for ipc in ipcs:
        make_set(data, ipc, "samples").save(run / "samples" / f"ipc-{ipc}")
        make_set(data, ipc, "refined", copies=copies).save(run / "refined" / f"ipc-{ipc}")
    common = {
        "state": "finished", "seconds": 61.0, "peak_memory_mib": 900, "command": "gendistill run",
        "versions": {"torch": "2"},
    }  # fmt: skip
    records = {
        "teacher": {"stage": "teacher", "accuracy": {"train": 1.0, "validation": 0.875}},
        "refined": {"stage": "refine", "w2": {"1": {"before": 2.0, "after": 1.0}, "2": {"before": 1.5, "after": 1.2}}},
    }
    for name, record in records.items():
        (run / name).mkdir(exist_ok=True)
        (run / name / "stage.json").write_text(json.dumps({**record, **common}))
    (run / "evaluation").mkdir()
    (run / "evaluation" / "summary.json").write_text(json.dumps(make_summary(data, gain, ipcs)))
    (run / "config.yaml").write_text(yaml.safe_dump({"seed": 3, "data": {"name": data.name}}))
    (run / "log.jsonl").write_text('{"time": 1700000000.0}\n')
    return run


def write_images(folder: Path, classes: tuple[str, ...] = ("ant", "bee")) -> RealData:
    """An image folder, read again."""
    made = make_data(classes)
    for i, (image, label) in enumerate(zip(made.train.images, made.train.labels.tolist(), strict=True)):
        path = folder / classes[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path)
    return load_data(name=str(folder))


def make_evaluation(folder: Path, data: RealData, sets: dict[Path, SurrogateSet], command: str) -> Path:
    """What `gendistill evaluate` leaves: rows of random real images and of the sets, which are saved at their paths."""
    rows = []
    for path, made in sets.items():
        made.save(path)
        keys = {"set": made.content_hash(), "per_class": [0.6, 0.7], "bytes": {"images": 100 * made.ipc, "labels": 0}}
        rows += [make_row("random", None, made.ipc, RANDOM)] * all(r["ipc"] != made.ipc for r in rows)
        rows.append({**make_row(made.meta["method"], None, made.ipc, [a + 0.2 for a in RANDOM]), **keys})
    summary = {
        "protocol": "gendistill", "data": data.describe(), "seed": 3, "rows": [with_verdict(row, rows) for row in rows],
        "command": command, "versions": {"torch": "2"}, "device": "cpu",
        "settings": {"runs": 3, "steps": 5, "network": "convnet", "width": 8},
    }  # fmt: skip
    hashes = [made.content_hash() for made in sets.values()]
    record = {"stage": "evaluate", "settings": {"inputs": {"surrogates": hashes}}, "command": command}
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "stage.json").write_text(json.dumps(record))
    return folder
