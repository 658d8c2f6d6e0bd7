"""The YAML front matter of a card: what the Hub lists a set under, and what lets datasets load it by name alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from gendistill.surrogate.card.entry import CardEntry
from gendistill.surrogate.card.facts import terms
from gendistill.surrogate.card.loaders import Layout, features
from gendistill.surrogate.manifest import TRAIN

FILES = {"imagefolder": f"{TRAIN}/**", "parquet": "train-*.parquet", "webdataset": "train-*.tar"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def front_matter(entries: Sequence[CardEntry], default: CardEntry, title: str, format: str) -> str:
    """YAML between its two lines; ``default`` is what is loaded where no config is named."""
    manifests = [entry.manifest for entry in entries]
    methods = dict.fromkeys(str(m["method"]) for m in manifests if m.get("method"))
    front: dict[str, Any] = {
        **terms(manifests).front_matter,
        "pretty_name": title,
        "task_categories": ["image-classification"],
        "size_categories": [_size(sum(m["stored_images"] for m in manifests))],
        "tags": ["dataset-distillation", "surrogate", "gendistill", *methods],
    }
    if format in FILES:
        front["configs"] = [_config(entry, format, entry is default and len(entries) > 1) for entry in entries]
    else:
        front["viewer"] = False
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=2**16)}---\n"


def _config(entry: CardEntry, format: str, default: bool) -> dict[str, Any]:
    path = "/".join(part for part in (entry.folder, FILES[format]) if part)
    config: dict[str, Any] = {
        "config_name": entry.config,
        **({"default": True} if default else {}),
        "data_files": [{"split": TRAIN, "path": path}],
    }
    layout = Layout.of(entry.manifest)
    if format == "imagefolder" and (layout.single or not layout.sorted):
        config |= {"drop_labels": False, "features": features(entry.manifest["folders"])}
    return config


def _size(images: int) -> str:
    return next((name for limit, name in SIZES if images < limit), "1M<n<10M")
