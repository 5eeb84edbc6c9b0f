"""Do two commits train to the same bits? For a change that is to move code and no meaning.

    python -m benchmarks.two_commits OLD NEW [--epochs N] [--scenes N] [-- OPTION...]

Both are cloned, and train on the same drawn scenes from the same seed; what stands behind `--` goes
to both trainings. The weights, the optimiser's state and the history are compared, bit for bit.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
FILES = ("best.safetensors", "last.safetensors")
SECONDS = "seconds"  # the one column of a history that two trainings may differ in


def cloned(commit: str, folder: Path) -> Path:
    """A clone of this repository at a commit."""
    for command in (
        ["git", "clone", "-q", "--no-checkout", str(ROOT), str(folder)],
        ["git", "-C", str(folder), "checkout", "-q", commit],
    ):
        subprocess.run(command, check=True)
    return folder


def call(clone: Path, module: str, *options: str) -> None:
    """Run a command of a clone, as it was then."""
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    environment["MINICNN_NUM_THREADS"] = str(os.cpu_count())  # so that it stays in one process
    command = [sys.executable, "-m", module, *options]
    subprocess.run(command, cwd=clone, env=environment, check=True)


def differences(old: Path, new: Path) -> list[str]:
    """A sentence for every array, and every row of the history, in which two runs differ."""
    found = []
    for file in FILES:
        arrays, others = (load_file(run / file) for run in (old, new))
        for name in sorted(arrays.keys() | others.keys()):
            if name not in arrays or name not in others:
                found.append(f"{file}: only the {'old' if name in arrays else 'new'} has {name}")
            elif arrays[name].tobytes() != others[name].tobytes():
                apart = np.abs(arrays[name].astype(float) - others[name]).max()
                found.append(f"{file}: {name} differs by up to {apart:.2g}")
    for was, now in zip(*(history(run) for run in (old, new)), strict=True):
        if was != now:
            found.append(f"history: {was} was, {now} is")
    return found


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as file:
        return [{k: row[k] for k in sorted(row) if k != SECONDS} for row in csv.DictReader(file)]


def main() -> None:
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("old")
    p.add_argument("new")
    p.add_argument("--epochs", default="2")
    p.add_argument("--scenes", default="3", help="drawn scenes of 512 px")
    options = p.parse_args(words[:at])
    with tempfile.TemporaryDirectory(prefix="minicnn-") as temporary:
        folder, runs = Path(temporary), []
        for number, commit in enumerate((options.old, options.new)):
            clone = cloned(commit, folder / f"clone{number}")
            if not runs:
                drawn = ["--out", str(folder / "data"), "--size", "512", "--cities", "1"]
                call(clone, "segment.synthetic", *drawn, "--scenes", options.scenes)
            runs.append(folder / f"run{number}")
            how = ["--data", str(folder / "data"), "--cache", str(folder / f"cache{number}")]
            how += ["--out", str(runs[-1]), "--split", "scene", "--epochs", options.epochs]
            call(clone, "segment.train", *how, "--device", "cpu", *words[at + 1 :])
        found = differences(*runs)
    print("\n".join(found) or f"{options.old} and {options.new} train to the same bits")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
