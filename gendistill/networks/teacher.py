"""Teacher: a trained classifier with its class statistics, as a folder of safetensors and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from gendistill.errors import ArtifactError
from gendistill.hashing import hash_tensors
from gendistill.networks.registry import batch_norm_layers, build_network
from gendistill.networks.statistics import ClassStatistics

FILE, FORMAT = "teacher.json", 1


@dataclass
class Teacher:
    """``spec`` rebuilds the network; ``meta`` has accuracies and the data it was trained on."""

    network: nn.Module
    statistics: ClassStatistics
    classes: tuple[str, ...]
    spec: dict[str, Any]
    meta: dict[str, Any] = field(default_factory=dict)

    def hash(self) -> str:
        return hash_tensors(self.network.state_dict())

    def facts(self) -> dict[str, Any]:
        """What labels say of their teacher; bytes are those of its weights."""
        weights = self.network.state_dict().values()
        return {
            "hash": self.hash(),
            "network": self.spec["name"],
            "accuracy": self.meta.get("accuracy", {}).get("validation"),
            "bytes": sum(tensor.nbytes for tensor in weights),
        }

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        self.statistics.save(folder / "statistics.safetensors")
        record = {"format": FORMAT, "classes": list(self.classes), "network": self.spec, **self.meta}
        (folder / FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Teacher:
        """Raises ArtifactError where the folder is no teacher or its weights do not fit."""
        folder = Path(folder)
        try:
            record = json.loads((folder / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{folder} is not a teacher folder ({FILE}: {error}). Make one with `gendistill teacher`."
            ) from error
        missing = [key for key in ("network", "classes") if not (isinstance(record, dict) and key in record)]
        if missing:
            raise ArtifactError(f"{folder / FILE} has no {' and no '.join(missing)}, so it is of no teacher.")
        network = build_network(**record["network"])
        try:
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except Exception as error:
            raise ArtifactError(f"{folder / 'model.safetensors'} does not fit its {FILE}: {error}") from error
        meta = {k: v for k, v in record.items() if k not in ("format", "classes", "network")}
        statistics = ClassStatistics.load(folder / "statistics.safetensors")
        unknown = sorted(statistics.means.keys() - batch_norm_layers(network).keys())
        if unknown:
            raise ArtifactError(
                f"{folder / 'statistics.safetensors'} has moments of layers that the network has not: "
                f"{', '.join(unknown[:5])}. Run `gendistill teacher` again."
            )
        return cls(network.eval(), statistics, tuple(record["classes"]), record["network"], meta)
