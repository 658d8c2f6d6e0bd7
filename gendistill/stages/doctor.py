"""`gendistill doctor`: what this machine and its Python have."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from gendistill import __version__, cpu_speed, runtime
from gendistill.config.commands import DoctorCommand
from gendistill.evaluation.cache import cache_folder
from gendistill.io import cache_root, format_bytes
from gendistill.stages import Outcome
from gendistill.surrogate.image_formats import available
from gendistill.threads import usable_processors

PACKAGES = (
    "torch", "torchvision", "diffusers", "accelerate", "timm", "POT", "datasets", "scikit-learn", "scipy", "numpy",
    "Pillow", "safetensors", "huggingface_hub", "pandas",
)  # fmt: skip
OPTIONAL = {  # what each is for, and the extra of gendistill that installs it
    "peft": ("adaptation lora of finetune", "lora"),
    "transformers": ("features transformers:NAME of evaluate", "transformers"),
    "tensorboard": ("report_to tensorboard of finetune", "tensorboard"),
    "wandb": ("report_to wandb of finetune", "wandb"),
}
FEATURES = {  # of a CPU
    "avx512_f": "AVX-512, for fp32",
    "avx512_bf16": "AVX-512 in bf16: mixed_precision auto uses it",
    "amx_bf16": "AMX in bf16: mixed_precision auto uses it",
}


def main(_: DoctorCommand) -> Outcome:
    found = {
        "versions": _versions(),
        "machine": _machine(),
        "devices": _devices(),
        "caches": _caches(),
        "optional packages": _optional(),
    }
    width = max(len(name) for part in found.values() for name in part)
    blocks = ["\n".join([f"{title}:", *(f"  {name:<{width}}  {said}" for name, said in part.items())])
              for title, part in found.items()]  # fmt: skip
    return Outcome("\n\n".join(blocks), found)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _versions() -> dict[str, str]:
    own = {"gendistill": __version__, "python": platform.python_version()}
    return own | {name: _version(name) for name in PACKAGES}


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": platform.platform(),
        "processors": f"{usable_processors()} usable of {os.cpu_count()}",
        "torch threads": f"{torch.get_num_threads()} (--threads or OMP_NUM_THREADS sets them)",
        "memory": format_bytes(memory),
        "free disk here": format_bytes(shutil.disk_usage(Path.cwd()).free),
        "image formats": ", ".join(available()),
        "C++ compiler": shutil.which(os.environ.get("CXX", "g++")) or "none: torch.compile is not used on the CPU",
    }


def _devices() -> dict[str, str]:
    able = torch.cpu.get_capabilities()
    found = {f"cpu {name}": f"{'yes' if able.get(name) else 'no'} ({text})" for name, text in FEATURES.items()}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{about.name}, {format_bytes(about.total_memory)}"
    device = runtime.device()
    precision = "bf16" if runtime.wants_bf16("auto", device) else "fp32"
    return {**found, "used": f"{device}, precision auto is {precision}", "long trainings on the CPU": _measured()}


def _measured() -> str:
    """What ``auto`` chooses for precision and compilation, and why."""
    seconds = cpu_speed.kept()
    if seconds is None:
        return "not measured yet; the first training of a quarter of an hour or more measures fp32, bf16 and compiling"
    steps = ", ".join(f"{mode} {1000 * value:.0f} ms" for mode, value in seconds.items())
    return f"auto is {cpu_speed.fastest(seconds)} (a step: {steps})"


def _caches() -> dict[str, str]:
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    usual = Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")  # torch's
    folders: Mapping[str, Path | None] = {
        "images": cache_root() / "data",
        "baselines": cache_folder("auto"),
        "Hub": Path(HF_HUB_CACHE),
        "datasets": Path(HF_DATASETS_CACHE),
        "compiled code": Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual)),
    }
    found = {
        name: f"{folder}, {format_bytes(_bytes(folder))}" for name, folder in folders.items() if folder is not None
    }
    return {**found, "network": "switched off by HF_HUB_OFFLINE" if HF_HUB_OFFLINE else "allowed"}


def _optional() -> dict[str, str]:
    found = {}
    for name, (purpose, extra) in OPTIONAL.items():
        installed = _version(name) if find_spec(name) else f"missing: pip install 'gendistill[{extra}]'"
        found[name] = f"{installed} (for {purpose})"
    return found


def _bytes(folder: Path) -> int:
    """Of the files below a folder, where links of the Hub's cache lead counted once."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    return total
