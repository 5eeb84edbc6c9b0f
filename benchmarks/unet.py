"""The U-Net in minicnn, PyTorch and Chainer side by side: time, memory, and how both grow.

    python -m benchmarks.unet --against torch chainer

PyTorch runs twice: as it comes, and with an allocator told to keep its pages (`TUNED`).
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from benchmarks.chainer_environment import chainer_python
from benchmarks.contender import AVX2, TUNED, Contender, alternate
from benchmarks.report import FOLDER, bars, gemm_peak, machine, table, write
from segment.unet import UNet

OURS, TORCH, STRICT, CHAINER = "minicnn", "torch", "torch tuned", "chainer"
STEPS = {"train": "training step", "predict": "inference"}
CHAINER_TILES = 4  # of 256 pixels, in one batch: beyond, Chainer takes minutes
MIB = 1 << 20

Row = dict[str, Any]


class Race:
    """Starts contenders with the settings that all tables share."""

    def __init__(self, against: Sequence[str], avx2: bool) -> None:
        self.environment = AVX2 if avx2 else {}
        self.names = [OURS]
        self.python = {}
        if TORCH in against:
            self.names += [TORCH, STRICT]
        if CHAINER in against:
            try:
                self.python[CHAINER] = chainer_python()
                self.names.append(CHAINER)
            except RuntimeError as error:
                print(f"chainer is left out: {error}", file=sys.stderr)

    def start(self, name: str, batch: int, tile: int, threads: int) -> Contender:
        extra = TUNED if name == STRICT else {}
        python = self.python.get(name, sys.executable)
        environment = {**self.environment, **extra}
        return Contender(
            name, "Net", batch, tile, threads=threads, python=python, environment=environment
        )

    def times(
        self, names: Sequence[str], batch: int, tile: int, threads: int, seconds: float
    ) -> dict[str, dict[str, list[float]]]:
        """Seconds of every round, by step and contender."""
        with ExitStack() as stack:
            running = [stack.enter_context(self.start(n, batch, tile, threads)) for n in names]
            result = {}
            for step in STEPS:
                result[step] = alternate(running, step, seconds)
                if CHAINER in names:  # a few rounds are enough to see it; the others go on
                    fast = [c for c in running if c.name != CHAINER]
                    result[step].update(alternate(fast, step, seconds))
        return result

    def peak(self, name: str, batch: int, tile: int, step: str, threads: int) -> int:
        """Bytes of a process that did nothing else."""
        with self.start(name, batch, tile, threads) as contender:
            for _ in range(2):
                contender.ask(step)
            return contender.ask("peak_memory")


def flops(tile: int) -> dict[str, int]:
    """Of one image, counted as the definition has them: 2 a multiplication with its addition."""
    forward = first = 0
    size = None
    for name, layer, (_, H, W, _) in UNet().stages((1, tile, tile, 3)):
        if "w" in layer.params:
            pixels = size if name.startswith("up") else H * W  # windows are the smaller side's
            forward += 2 * pixels * layer.params["w"].size
            first = first or forward
        size = H * W
    return {"train": 3 * forward - first, "predict": forward}  # the images need no gradient


def ratio(times: dict[str, list[float]], name: str) -> float:
    """Our time over that of `name`, the median over rounds: neighbours in time are compared."""
    return median(a / b for a, b in zip(times[OURS], times[name], strict=False))


def speed(race: Race, batches: Sequence[int], tiles: Sequence[int], threads: int) -> list[Row]:
    peak = gemm_peak(threads)
    rows = []
    for tile in tiles:
        for batch in batches:
            light = batch * tile * tile <= CHAINER_TILES * 256 * 256
            names = [name for name in race.names if name != CHAINER or light]
            for step, times in race.times(names, batch, tile, threads, 8).items():
                milliseconds = {n: 1e3 * median(t) / batch for n, t in times.items()}
                share = flops(tile)[step] / (milliseconds[OURS] / 1e3) / peak
                row: Row = {"step": STEPS[step], "tile": tile, "batch": batch, **milliseconds}
                row |= {f"/ {n}": ratio(times, n) for n in names[1:]}
                rows.append({**row, "of GEMM peak": f"{share:.0%}"})
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def memory(race: Race, threads: int) -> list[Row]:
    rows = []
    for step, batch in (("train", 4), ("train", 8), ("predict", 1), ("predict", 4), ("predict", 8)):
        names = [n for n in race.names if n != CHAINER or batch <= CHAINER_TILES]
        mib = {n: race.peak(n, batch, 256, step, threads) / MIB for n in names}
        row: Row = {"step": STEPS[step], "batch": batch, **mib}
        rows.append(row | {f"/ {n}": mib[OURS] / mib[n] for n in names[1:]})
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def growth(race: Race) -> list[Row]:
    """Ours and the strict baseline over batch, tile and threads, a factor of two apart."""
    names = [n for n in race.names if n in (OURS, STRICT)]
    cases = [(batch, 256, 2) for batch in (1, 2, 4, 8, 16, 32)]
    cases += [(1, tile, 2) for tile in (128, 512, 1024)]
    cases += [(4, 256, 1)]
    rows = []
    for batch, tile, threads in cases:
        pixels = batch * tile * tile / 256**2
        row: Row = {"batch": batch, "tile": tile, "threads": threads}
        for step, times in race.times(names, batch, tile, threads, 3).items():
            row |= {f"{step}, {n}": 1e3 * median(t) / pixels for n, t in times.items()}
            row |= {f"{step}, ratio": ratio(times, n) for n in names[1:]}
        rows.append(row)
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unet", description=__doc__)
    parser.add_argument("--against", nargs="*", default=[TORCH], choices=[TORCH, CHAINER])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--tiles", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-growth", action="store_true", help="only the tables that compare")
    parser.add_argument("--avx2", action="store_true", help="keep everyone to AVX2 instructions")
    args = parser.parse_args()
    race = Race(args.against, args.avx2)
    name = "unet-avx2" if args.avx2 else "unet"
    data: dict[str, Any] = {"machine": machine(), "avx2": args.avx2, "threads": args.threads}
    data["speed"] = speed(race, args.batches, args.tiles, args.threads)
    data["memory"] = memory(race, args.threads)
    data["growth"] = [] if args.no_growth else growth(race)
    write(name, describe(data), data)
    labels = [f"{r['step'].split()[0]} {r['batch']} x {r['tile']}" for r in data["speed"]]
    others = [n for n in (TORCH, STRICT) if n in race.names]
    if others:
        ratios = {n: [r[f"/ {n}"] for r in data["speed"]] for n in others}
        bars(FOLDER / f"{name}.png", labels, ratios, "U-Net, one step")


def describe(data: dict[str, Any]) -> str:
    name = "unet-avx2" if data["avx2"] else "unet"
    text = [
        "# The U-Net against PyTorch and Chainer" + (" with AVX2 only" if data["avx2"] else ""),
        "Written by `python -m benchmarks.unet`. " + ", ".join(data["machine"].values()) + ". "
        f"float32, {data['threads']} threads, each contender in a process of its own, taking "
        "turns step by step. Times are medians, in ms an image; a column `/ name` is our time "
        "over that one's, the median over rounds. `torch tuned` has an allocator that keeps its "
        "pages. The last column is the convolutions' FLOPs, counted as the definition has them, "
        "over the time and over the rate of a large sgemm; Toom-Cook does fewer.",
        f"![Bars for each batch: the time of minicnn over that of the others]({name}.png)",
        table(data["speed"]),
        "## Peak memory of a process, MiB\n256-pixel tiles, two steps, everything included.",
        table(data["memory"]),
    ]
    if data["growth"]:
        text += [
            "## How the cost grows\nms for each 256 x 256 pixels; `ratio` to torch tuned.",
            table(data["growth"]),
        ]
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
