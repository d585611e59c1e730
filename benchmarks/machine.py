"""The header of every benchmark's output, with the date, hardware and versions."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path


def describe(*packages: str) -> str:
    """Return one line with the date, processor, number of cores, versions of Python and `packages`, and commit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{time.strftime('%Y-%m-%d')}, {named[0] if named else platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {versions}, commit {commit}"
    )
