"""The processor that a benchmark runs on, or imitates:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 pytest tests/benchmarks/test_matching.py --benchmark-only -s

is a CPU without AVX-512 and bf16, in PyTorch's kernels, oneDNN's and compiled code.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gendistill.runtime import native_bf16

UNITS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def uses_bf16() -> bool:
    """Whether the CPU has bf16 units and does not imitate one without."""
    return native_bf16(torch.device("cpu")) and torch.backends.cpu.get_cpu_capability() != "AVX2"


def processor() -> str:
    """Its name and units, and the instructions that PyTorch and oneDNN use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {name.strip(): value.strip() for name, value in found.items()}
    units = [unit for unit in UNITS if unit in known.get("flags", "").split()]
    used = f"PyTorch uses {torch.backends.cpu.get_cpu_capability()}"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{known.get('model name', 'unknown')} ({' '.join(units)}); {used}" + (f", oneDNN {limit}" if limit else "")


def pytest_configure() -> None:
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        import torch._inductor.config as inductor

        inductor.cpp.simdlen = 256


def pytest_report_header() -> str:
    return f"processor: {processor()}"
