"""Describes the machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_machine() -> dict[str, str | int | None]:
    """Return the processor, its SIMD extensions, the number of cores, and the Python version."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "simd": " ".join(
            name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {name}" in flags
        ),
        "python": platform.python_version(),
    }
