"""The dataset card that goes with every surrogate set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATE = """---
license: {licence}
task_categories:
- image-classification
configs:
- config_name: ipc-{ipc}
  data_files:
  - split: train
    path: train/**
---
# {title}

A surrogate set of {ipc} image(s) a class, {classes} classes, {size} x {size} px, {channels}; made from
`{data}` ({real} training images) by `{method}` ({stages}), seed {seed}. {count} images, {bytes} bytes.

```python
from datasets import load_dataset
from torchvision.datasets import ImageFolder

train = load_dataset("imagefolder", data_dir=".")["train"]
train = ImageFolder("train")
```

Networks in the evaluation see pixels scaled from [0, 255] to [-1, 1]: `x / 127.5 - 1`. Folders sort in another order
than the class indices where names are not sorted; `manifest.json` has the order under `classes`.

Made with: `{command}`
"""


CARD = "README.md"


def write_card(folder: Path, manifest: dict[str, Any]) -> None:
    """README.md from the manifest."""
    data = manifest.get("data", {})
    counts = data.get("counts", {}).get("train", [])
    text = TEMPLATE.format(
        licence=manifest.get("licence", "unknown"),
        title=f"{data.get('name', 'surrogate')} at IPC {manifest['ipc']}",
        ipc=manifest["ipc"],
        classes=len(manifest["classes"]),
        size=manifest["image_size"],
        channels="grey" if manifest["channels"] == 1 else "RGB",
        data=data.get("name", "unknown"),
        real=sum(counts),
        method=manifest.get("method", "unknown"),
        stages=" -> ".join(manifest.get("stages", [])) or "one step",
        seed=manifest.get("seed", "unknown"),
        count=manifest["stored_images"],
        bytes=manifest["bytes"]["images"],
        command=manifest.get("command", "unknown"),
    )
    (folder / CARD).write_text(text, encoding="utf-8")
