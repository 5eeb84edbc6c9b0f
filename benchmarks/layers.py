"""Every layer shape of the U-Net by each algorithm, and in PyTorch: why the rule is what it is.

python -m benchmarks.layers
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median
from typing import Any

from benchmarks.contender import AVX2, TUNED, Contender, bursts
from benchmarks.report import FOLDER, bars, gemm_peak, machine, table, write
from benchmarks.unet import STEPS
from segment.unet import UNet

TORCH = "torch tuned"
WAYS = ("rule", "windows", "tiles", "readable")
OURS = "minicnn rule"
BURST = 0.25  # seconds that each contender has on end


def shapes(tile: int) -> Iterator[tuple[str, str, int, int, int, int]]:
    """(name, kind, size of the input, C, skip, F) of every different convolution."""
    seen, size = set(), tile
    for name, layer, (_, H, _, F) in UNet().stages((1, tile, tile, 3)):
        if name.startswith(("encoder", "decoder", "up")):
            kind = "up" if name.startswith("up") else "block"
            skip = F if name.startswith("decoder") and name.endswith(".0") else 0
            C = layer.params["w"].shape[3 if kind == "up" else 2] - skip
            shape = kind, size if kind == "up" else H, C, skip, F
            if shape not in seen:
                yield name, *shape
            seen.add(shape)
        size = H


def measure(batch: int, tile: int, threads: int, avx2: bool) -> list[dict[str, Any]]:
    peak = gemm_peak(threads)
    rows = []
    for name, kind, size, C, skip, F in shapes(tile):
        common = {"threads": threads, "environment": AVX2 if avx2 else {}}
        strict = {**common, "environment": {**common["environment"], **TUNED}}
        shape = kind, batch, size, C, skip, F
        with ExitStack() as stack:
            running = [
                stack.enter_context(Contender(f"minicnn {way}", "Block", *shape, way, **common))
                for way in (WAYS if kind == "block" else WAYS[:1])
            ]
            running.append(stack.enter_context(Contender(TORCH, "Block", *shape, **strict)))
            for step in STEPS:
                times = bursts(running, step, BURST)
                ms = {n: 1e3 * median(t) / batch for n, t in times.items()}
                ratio = median(a / b for a, b in zip(times[OURS], times[TORCH], strict=True))
                work = 2 * 16 * size**2 * (C + skip) * F * (3 if step == "train" else 1)
                share = work / (ms[OURS] / 1e3) / peak
                channels = f"{C} + {skip}" if skip else str(C)
                row = {"layer": name, "step": step, "input": size, "C": channels, "F": F}
                rows.append({**row, **ms, "/ torch": ratio, "of GEMM peak": f"{share:.0%}"})
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--avx2", action="store_true", help="keep everyone to AVX2 instructions")
    args = parser.parse_args()
    name = "layers-avx2" if args.avx2 else "layers"
    about = machine()
    rows = measure(args.batch, args.tile, args.threads, args.avx2)
    text = [
        "# The layers, one by one" + (" with AVX2 only" if args.avx2 else ""),
        "Written by `python -m benchmarks.layers`. " + ", ".join(about.values()) + ". "
        f"float32, batch {args.batch}, {args.threads} threads, ms an image (medians of three "
        f"bursts of {BURST} s each, taking turns). `train` is forward and backward of "
        "convolution, batch norm and ReLU, or of the transposed convolution (`up`); `predict` is "
        "forward alone. `rule` is the algorithm that `minicnn.kernels.cpu.conv_block.method` "
        "chooses; the next columns force one.",
        "A layer alone is not a layer in the net: its inputs are as the last step left them in "
        "cache. Compare whole nets in [unet.md](unet.md).",
        f"![Bars for each layer: the time of minicnn over that of PyTorch]({name}.png)",
        table(rows),
    ]
    data = {"machine": about, "batch": args.batch, "threads": args.threads, "rows": rows}
    write(name, "\n\n".join(text) + "\n", data)
    labels = [row["layer"] for row in rows if row["step"] == "train"]
    ratios = {
        title: [row["/ torch"] for row in rows if row["step"] == step]
        for step, title in STEPS.items()
    }
    bars(FOLDER / f"{name}.png", labels, ratios, "Layers against PyTorch (tuned)")


if __name__ == "__main__":
    main()
