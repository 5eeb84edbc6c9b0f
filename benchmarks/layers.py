"""Every layer shape of the U-Net by each algorithm, and in PyTorch: why the rule is what it is.

python -m benchmarks.layers
    python -m benchmarks.layers --levels   core-ms by level and pass, also on a busy machine
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from itertools import product
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
CORE_TIME, CORE_SECONDS = "process_time", 0.3  # the clock for core-ms, and of it for each pass


Shape = tuple[str, int, int, int, int]  # kind, size of the input, C, skip, F


def convolutions(tile: int) -> Iterator[tuple[str, Shape]]:
    """The name and shape of every convolution but the head's."""
    size = tile
    for name, layer, (_, H, _, F) in UNet().stages((1, tile, tile, 3)):
        if name.startswith(("encoder", "decoder", "up")):
            kind = "up" if name.startswith("up") else "block"
            skip = F if name.startswith("decoder") and name.endswith(".0") else 0
            C = layer.params["w"].shape[3 if kind == "up" else 2] - skip
            yield name, (kind, size if kind == "up" else H, C, skip, F)
        size = H


def shapes(tile: int) -> dict[Shape, str]:
    """Every different shape, and the first convolution that has it."""
    return {shape: name for name, shape in reversed(list(convolutions(tile)))}


def measure(batch: int, tile: int, threads: int, avx2: bool) -> list[dict[str, Any]]:
    peak = gemm_peak(threads)
    rows = []
    for (kind, size, C, skip, F), name in sorted(shapes(tile).items(), key=lambda item: item[1]):
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


def levels(batch: int, tile: int, inference: tuple[int, ...]) -> list[dict[str, Any]]:
    """Core-ms an image on one thread, by level and pass, and ours over PyTorch's: of training in
    batches of `batch`, of inference in those of `inference`. Each layer is alone in them; `step` is
    that of the whole net, which also pools and moves its weights."""
    took: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                Contender(name, "Net", batch, tile, threads=1, environment=extra, clock=CORE_TIME)
            )
            for name, extra in (("minicnn", {}), (TORCH, TUNED))
        ]
        for one in both:
            step = one.ask("train", 10 * CORE_SECONDS) / batch
            took["the net", one.name] = Counter({"step": 1e3 * step})
        for shape, one in product([shape for _, shape in convolutions(tile)], both):
            part = "up-convolutions" if shape[0] == "up" else f"blocks, {shape[1]} px"
            passes = _passes(one, shape, batch, inference)
            took[part, one.name].update(passes)
            took["all of these", one.name].update(passes)
    rows = []
    for part in dict.fromkeys(part for part, _ in took):
        ours, theirs = took[part, "minicnn"], took[part, TORCH]
        row: dict[str, Any] = {"core-ms an image": part}
        for step, ms in ours.items():
            row |= {step: ms, f"{step} / torch": ms / theirs[step]}
        rows.append(row)
    return rows


@cache
def _passes(
    contender: Contender, shape: Shape, batch: int, inference: tuple[int, ...]
) -> dict[str, float]:
    """Core-ms an image of each pass through a layer."""
    kind, *sizes = shape
    contender.ask("Block", kind, batch, *sizes)
    steps = ("forward", "weights", "train") if kind == "block" else ("forward", "train")
    took = {step: 1e3 * contender.ask(step, CORE_SECONDS) / batch for step in steps}
    result = {"forward": took["forward"], "backward": took["train"] - took["forward"]}
    if "weights" in took:
        result["of it to the inputs"] = took["train"] - took["weights"]
    for size in inference:
        contender.ask("Block", kind, size, *sizes)
        result[f"inference, {size}"] = 1e3 * contender.ask("predict", CORE_SECONDS / 2) / size
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--avx2", action="store_true", help="keep everyone to AVX2 instructions")
    parser.add_argument("--levels", action="store_true", help="core-ms by level and pass")
    args = parser.parse_args()
    if args.levels:
        print(table(levels(args.batch, args.tile, (1, 4))))
        return
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
