"""What every report has in common: the machine, its peak, tables, and the files they go to."""

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
GEMM = 2048  # rows and columns of the matrices that the peak is measured with


def processor() -> str:
    """The processor's name and its number of cores."""
    model = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores"


def machine() -> dict[str, str]:
    """What ran it."""
    blas = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    return {
        "processor": processor(),
        "python": f"Python {platform.python_version()}",
        "numpy": f"NumPy {version('numpy')}",
        "blas": ", ".join(f"{b['internal_api']} {b['version']} {b['architecture']}" for b in blas),
        "torch": f"PyTorch {version('torch')}",
        "date": time.strftime("%Y-%m-%d"),
    }


def gemm_peak(threads: int) -> float:
    """The fastest of 10 large float32 matrix products, in FLOP/s: the roof of any GEMM code."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((GEMM, GEMM), np.float32) for _ in range(2))
    best = float("inf")
    with threadpool_limits(threads, "blas"):
        for _ in range(10):
            started = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - started)
    return 2 * GEMM**3 / best


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Dictionaries as a Markdown table, numbers to the right; what a row lacks stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
    right = [any(isinstance(row.get(name), int | float) for row in rows) for name in names]
    rule = ["---:" if r else "---" for r in right]
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, rule, *cells])


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write(name: str, text: str, data: dict[str, Any], folder: Path = FOLDER) -> None:
    """NAME.md and NAME.json in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    print(f"written: {folder / name}.md, .json")


def bars(path: Path, labels: Sequence[str], ratios: dict[str, list[float]], title: str) -> None:
    """A group of bars per label: time over the rival's, with a line where both are as fast."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(1.5 + 0.6 * len(labels), 3.6), layout="constrained")
    width = 0.8 / len(ratios)
    for i, (name, values) in enumerate(ratios.items()):
        axes.bar(np.arange(len(labels)) + (i - (len(ratios) - 1) / 2) * width, values, width)
        axes.plot([], [], "s", color=f"C{i}", label=name)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=8)
    axes.set(ylabel="time, minicnn / the other", title=title)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
