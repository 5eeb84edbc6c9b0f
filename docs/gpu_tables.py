"""Fills the generated parts of gpu.md and one-kernel.md: `python docs/gpu_tables.py`.

A part stands between `<!-- NAME -->` and `<!-- end -->`. A test fails when one is out of date.
"""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from minicnn import naive, ops
from segment.selfcheck.roofline import GPUS, count, seconds
from segment.train.gpu_memory import training_bytes
from segment.unet import UNet

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
from benchmarks import gpu_model  # noqa: E402  (in no package that is installed)

CUDA = DOCS.parent / "minicnn" / "kernels" / "cuda"
REGISTERS, BATCH = 65_536, 16
TENSOR_CORES = 80  # as in minicnn/kernels/gpu
LIMITS = {  # of a multiprocessor: threads, blocks, KiB of shared memory
    70: (2048, 32, 96),
    75: (1024, 16, 64),
    80: (2048, 32, 164),
    86: (1536, 16, 100),
    89: (1536, 24, 100),
    90: (2048, 32, 228),
    100: (2048, 32, 228),
    103: (2048, 32, 228),
    120: (1536, 24, 100),
}
RESERVED = 1024  # bytes of shared memory that the system takes of each block


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def work() -> str:
    """Operations and bytes of a training step, per tile, by kind of kernel."""
    kinds: dict[str, list[float]] = {}
    for each in count(UNet(), batch=BATCH):
        row = kinds.setdefault(each.kernel, [0.0, 0.0])
        row[0] += each.flop / BATCH
        row[1] += each.nbytes / BATCH
    total = [sum(row[i] for row in kinds.values()) for i in (0, 1)]
    rows = [
        [kind, f"{flop / 1e9:.2f}", f"{nbytes / 2**20:.0f}"]
        for kind, (flop, nbytes) in {**kinds, "all": total}.items()
    ]
    return table(["kernels", "GFLOP a tile", "MiB a tile"], rows)


def predictions() -> str:
    rows = []
    for gpu in GPUS:
        row = [gpu.name, f"{gpu.peak / 1e12:.1f}", f"{gpu.bandwidth / 1e9:,.0f}"]
        for training in (True, False):
            steps = count(UNet(), batch=BATCH, training=training)
            row.append(f"{BATCH / seconds(steps, gpu):,.0f}")
        rows.append(row)
    return table(["GPU", "TFLOP/s", "GB/s", "training", "inference"], rows)


def aim() -> str:
    return table(gpu_model.AIM, gpu_model.aim_rows())


def ladder() -> str:
    names = [card.name for card in gpu_model.CARDS]
    return table(["with", *names], gpu_model.ladder_rows())


def memory() -> str:
    net = UNet()
    rows = [[str(n), f"{training_bytes(net, n) / 2**30:.2f}"] for n in (1, 8, 16, 32, 64)]
    return table(["tiles a step", "GiB"], rows)


def resources() -> str:
    """Registers, shared memory and occupancy; needs NVIDIA's compiler from the test extra."""
    sys.path.insert(0, str(DOCS.parent / "tests" / "gpu"))
    import nvrtc

    rows = []
    for text in _modules():
        for name, bound in nvrtc.threads(text, 80).items():
            row = [f"`{name}`", str(bound)]
            for architecture in nvrtc.ARCHITECTURES:
                if architecture < TENSOR_CORES and "mma.sync" in text:
                    row.append("-")
                    continue
                used = nvrtc.resources(text, architecture)[name]
                threads, blocks, shared = LIMITS[architecture]
                registers = -(-used.registers // 8) * 8 * bound
                by_memory = shared * 1024 // (used.shared + RESERVED)
                blocks = min(blocks, REGISTERS // registers, threads // bound, by_memory)
                share = blocks * bound / threads
                row.append(f"{used.registers} / {share:.0%}")
            rows.append([*row, f"{used.shared:,}"])
    names = [f"sm_{a}" for a in nvrtc.ARCHITECTURES]
    return table(["kernel", "threads", *names, "shared bytes"], sorted(rows))


def _modules() -> list[str]:
    text = (CUDA.parent / "gpu" / "launches.py").read_text()
    found = re.search(r"^FILES = \{.*?^\}", text, re.M | re.S)
    assert found
    files = re.findall(r'"\w+": \(([^)]*)\)', found[0])
    return [
        "\n".join((CUDA / f"{name}.cu").read_text() for name in re.findall(r"\w+", each))
        for each in files
    ]


def _python(function: Callable[..., object]) -> str:
    return f"```python\n{inspect.getsource(function).rstrip()}\n```"


def _cuda(file: str, start: str, end: str) -> str:
    text = (CUDA / f"{file}.cu").read_text()
    begin = text.index(start)
    return f"```cuda\n{text[begin : text.index(end, begin)].rstrip()}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "work": work,
    "predictions": predictions,
    "aim": aim,
    "ladder": ladder,
    "memory": memory,
    "resources": resources,
    "pool loops": lambda: _python(naive.max_pool2d),
    "pool numpy": lambda: _python(ops.max_pool2d),
    "pool cuda": lambda: _cuda("pool", "// The first of equals", "// other:"),
    "conv loops": lambda: _python(naive.conv2d),
    "conv numpy": lambda: _python(ops.conv2d),
    "conv cuda": lambda: _cuda("convolve", "    Quad next_a", "    if (moments)"),
    "tile cuda": lambda: _cuda("tile", "    __device__ __forceinline__ void multiply", "};"),
}
PART = re.compile(r"(<!-- ([\w ]+) -->\n).*?(<!-- end -->)", re.S)


def filled(text: str) -> str:
    return PART.sub(lambda m: f"{m[1]}{PARTS[m[2]]()}\n{m[3]}", text)


if __name__ == "__main__":
    for page in (DOCS / "gpu.md", DOCS / "one-kernel.md"):
        page.write_text(filled(page.read_text()))
