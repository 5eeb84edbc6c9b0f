"""Executes PTX, what NVIDIA's compiler makes of a kernel, with one NumPy lane per thread.

The threads that are furthest behind go first, all of them at once, until they branch or meet. On
the way every access to memory is checked: inside a buffer, aligned, and no two threads at one
place without a barrier between them (in global memory: at all). It knows the part of PTX that our
kernels compile to; an instruction that it doesn't know raises. What is approximate on a GPU (ex2)
is exact here.
"""

import re
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import nvrtc
from cuda_on_cpu import only

TYPES = {
    **{f"{kind}{bits}": f"{code}{bits // 8}" for bits in (8, 16, 32, 64)
       for kind, code in (("b", "u"), ("u", "u"), ("s", "i"))},
    "f32": "f4",
    "f64": "f8",
    "pred": "?",
}  # fmt: skip
REGISTERS = {"p": "?", "f": "f4", "fd": "f8", "r": "u4", "rd": "u8", "rs": "u2"}
UNDEFINED = 0xFF
BLOCKS_AT_ONCE = 64
PARAMETER = 1 << 16  # parameters lie this far apart
COMPARE: dict[str, Any] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "nan": lambda x, y: np.isnan(x) | np.isnan(y),
    "num": lambda x, y: ~(np.isnan(x) | np.isnan(y)),
}
UNARY: dict[str, Any] = {
    "neg": np.negative,
    "abs": np.abs,
    "not": np.invert,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
    "ex2": np.exp2,
    "lg2": np.log2,
    "mov": lambda x: x,
    "cvta": lambda x: x,
}
BINARY: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.fmin,
    "max": np.fmax,
    "rem": np.fmod,
}


class Fault(RuntimeError):
    """What a GPU would answer with an error, or with wrong numbers now and then."""


class Instruction(NamedTuple):
    guard: tuple[bool, str] | None  # (negated, predicate)
    op: tuple[str, ...]
    operands: tuple[str, ...]


class Kernel(NamedTuple):
    parameters: list[str]
    shared: dict[str, int]  # offsets of the shared arrays
    shared_bytes: int
    code: list[Instruction]
    labels: dict[str, int]


def parse(text: str) -> dict[str, Kernel]:
    """The kernels of a PTX module."""
    text = re.sub(r"//.*", "", text)
    entry = re.compile(r"\.entry (\w+)\((.*?)\)(.*?)\n\{(.*?)\n\}", re.S)
    return {m[1]: _kernel(m[2], m[4]) for m in entry.finditer(text)}


def _kernel(parameters: str, body: str) -> Kernel:
    names = [p.split()[-1].split("[")[0] for p in parameters.split(",") if p.strip()]
    shared, offset = {}, 0
    for name, size in re.findall(r"\.shared .*?\.b8 (\w+)\[(\d+)\];", body):
        shared[name] = offset
        offset += -(-int(size) // 16) * 16
    code: list[Instruction] = []
    labels = {}
    for line in re.split(r"[;\n]", body):
        line = line.strip()
        while label := re.match(r"(\$\w+):\s*", line):
            labels[label[1]] = len(code)
            line = line[label.end() :]
        if not line or line[0] in ".{}":
            continue
        m = re.match(r"(?:@(!?)(%p\d+)\s+)?([\w.:]+)\s*(.*)", line)
        assert m, line
        operands = tuple(o.strip() for o in re.split(r",(?![^{]*\})", m[4])) if m[4] else ()
        code.append(
            Instruction((bool(m[1]), m[2]) if m[2] else None, tuple(m[3].split(".")), operands)
        )
    return Kernel(names, shared, offset, code, labels)


class Buffers:
    """Global memory: the arrays a kernel may touch, and which thread wrote what."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        arrays = sorted({a.ctypes.data: a for a in arrays}.values(), key=lambda a: a.ctypes.data)
        self.bytes = [a.reshape(-1).view(np.uint8) for a in arrays]
        self.start = np.array([a.ctypes.data for a in arrays], np.int64)
        self.size = np.array([a.nbytes for a in arrays], np.int64)
        self.writer = [np.full(a.nbytes, -1) for a in arrays]

    def locate(self, address: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Which array each address is in, and where; Fault outside of all."""
        which = np.maximum(np.searchsorted(self.start, address, "right") - 1, 0)
        offset = address - self.start[which]
        bad = (offset < 0) | (offset + width > self.size[which])
        if bad.any():
            raise Fault(f"out of bounds in {bad.sum()} threads, address {address[bad][0]:#x}")
        if (address % width).any():
            raise Fault("misaligned access to global memory")
        return which, offset

    def check_race(
        self, which: int, offset: np.ndarray, width: int, thread: np.ndarray, store: bool
    ) -> None:
        """Fault where another thread has written, or now writes, the same bytes."""
        at = offset[:, None] + np.arange(width)
        writer = self.writer[which]
        if ((writer[at] >= 0) & (writer[at] != thread[:, None])).any():
            raise Fault("race in global memory")
        if store:
            writer[at] = thread[:, None]
            if (writer[at] != thread[:, None]).any():
                raise Fault("race in global memory: two threads write one place")


class Shared:
    """The shared memory of some blocks, 4-byte word by word with its last reader and writer."""

    def __init__(self, blocks: int, nbytes: int) -> None:
        self.bytes = np.full(blocks * nbytes, UNDEFINED, np.uint8)
        self.per_block = nbytes
        words = len(self.bytes) // 4
        self.writer, self.reader = np.full(words, -1), np.full(words, -1)  # reader -2: several
        self.write_epoch, self.read_epoch = np.full(words, -1), np.full(words, -1)
        self.epoch = np.zeros(blocks, np.int64)  # barriers passed

    def locate(self, offset: np.ndarray, width: int, block: np.ndarray) -> np.ndarray:
        if (offset % width).any() or (offset < 0).any() or (offset + width > self.per_block).any():
            raise Fault("out of bounds or misaligned in shared memory")
        return offset + block * self.per_block

    def check_race(
        self, word: np.ndarray, lane: np.ndarray, block: np.ndarray, store: bool
    ) -> None:
        epoch = self.epoch[block]
        hit = (self.write_epoch[word] == epoch) & (self.writer[word] != lane)
        if store:
            hit |= (self.read_epoch[word] == epoch) & (self.reader[word] != lane)
        if hit.any():
            raise Fault(f"race in shared memory, {'write' if store else 'read'}")
        if not store:
            shared = (self.read_epoch[word] == epoch) & (self.reader[word] != lane)
            self.reader[word] = np.where(shared, -2, lane)
            self.read_epoch[word] = epoch
            several = self.reader[word] != lane  # lanes of this very instruction at one word
            self.reader[word[several]] = -2
            return
        self.writer[word], self.write_epoch[word] = lane, epoch
        if (self.writer[word] != lane).any():
            raise Fault("race in shared memory: two threads write one place")


@cache
def _kernels(text: str, architecture: int) -> dict[str, Kernel]:
    return parse(nvrtc.ptx(text, architecture))


class Machine:
    """Runs kernels as NVIDIA's compiler translates them for an architecture."""

    def __init__(self, architecture: int = 80) -> None:
        self.architecture = architecture

    def launch(
        self,
        text: str,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: list[bytes],
        arrays: list[np.ndarray],
    ) -> None:
        """Run kernel `name` of a .cu text; `arrays` are all the memory it may touch."""
        kernel = _kernels(only(text, name), self.architecture)[name]
        grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        buffers, blocks = Buffers(arrays), int(np.prod(grid))
        parameters = dict(zip(kernel.parameters, arguments, strict=True))
        for first in range(0, blocks, BLOCKS_AT_ONCE):
            which = np.arange(first, min(first + BLOCKS_AT_ONCE, blocks))
            _Run(kernel, grid, block, parameters, buffers, which).run()


class _Run:
    """Some blocks on their way through a kernel; `ix` are always the lanes that take part."""

    def __init__(
        self,
        kernel: Kernel,
        grid: Any,
        block: Any,
        parameters: Any,
        buffers: Buffers,
        which: np.ndarray,
    ) -> None:
        self.kernel, self.parameters, self.buffers = kernel, parameters, buffers
        threads = int(np.prod(block))
        lane = np.arange(threads * len(which))
        self.thread_of_block, self.block = lane % threads, lane // threads
        number = which[self.block]
        self.thread = number * threads + self.thread_of_block
        self.registers: dict[str, np.ndarray] = {}
        self.special = {}
        for name, index, sizes in (("tid", self.thread_of_block, block), ("ctaid", number, grid)):
            for axis, letter in enumerate("xyz"):
                self.special[f"%{name}.{letter}"] = index % sizes[axis]
                self.special[f"%n{name}.{letter}"] = np.full(len(lane), sizes[axis])
                index = index // sizes[axis]
        self.shared = Shared(len(which), max(16, kernel.shared_bytes))
        self.pc = np.zeros(len(lane), np.int64)

    # ------------------------------------------------------------------ operands

    def read(self, operand: str, dtype: str, ix: np.ndarray) -> np.ndarray:
        if operand in self.special:
            return self.special[operand][ix].astype(dtype)
        if operand.startswith("%"):
            value = self.registers[operand][ix]
            same = value.dtype.itemsize == np.dtype(dtype).itemsize
            return value.view(dtype) if same else value.astype(dtype)
        if operand.startswith(("0f", "0d")):
            size = 4 if operand[1] == "f" else 8
            bits = int(operand[2:], 16).to_bytes(size, "little")
            return np.full(len(ix), np.frombuffer(bits, f"f{size}")[0], dtype)
        if operand in self.kernel.shared:
            return np.full(len(ix), self.kernel.shared[operand], dtype)
        if operand in self.parameters:  # its address, for a look-up in a table
            return np.full(len(ix), self.kernel.parameters.index(operand) * PARAMETER, dtype)
        if dtype == "?":
            return np.full(len(ix), operand != "0")
        bits = 8 * np.dtype(dtype).itemsize
        value = np.array(int(operand, 0) & ((1 << bits) - 1), f"u{bits // 8}").view(dtype)
        return np.full(len(ix), value)

    def write(self, operand: str, value: np.ndarray, ix: np.ndarray) -> None:
        dtype = np.dtype(REGISTERS[operand.strip("%0123456789")])
        register = self.registers.setdefault(operand, np.zeros(len(self.pc), dtype))
        register[ix] = (
            value.view(dtype) if value.dtype.itemsize == dtype.itemsize else value.astype(dtype)
        )

    def address(self, operand: str, ix: np.ndarray) -> np.ndarray:
        m = re.fullmatch(r"\[([%\w$]+)(?:\+(-?\d+))?\]", operand)
        assert m, operand
        wide = "u4" if m[1].startswith("%r") and not m[1].startswith("%rd") else "i8"
        return self.read(m[1], wide, ix).astype(np.int64) + int(m[2] or 0)

    # ------------------------------------------------------------------ control

    def run(self) -> None:
        end, meeting = len(self.kernel.code), set(self.kernel.labels.values())
        with np.errstate(all="ignore"):
            while (running := self.pc < end).any():
                at = int(self.pc[running].min())
                ix = np.flatnonzero(self.pc == at)
                while not self.step(at, ix):
                    at += 1
                    if at in meeting or at >= end:
                        self.pc[ix] = at
                        break

    def step(self, at: int, ix: np.ndarray) -> bool:
        """One instruction for the lanes `ix`; whether they go separate ways after it."""
        guard, op, operands = self.kernel.code[at]
        chosen = ix
        if guard:
            chosen = ix[self.registers[guard[1]][ix] != guard[0]]
        if op[0] in ("bra", "ret", "exit"):
            self.pc[ix] = at + 1
            self.pc[chosen] = (
                len(self.kernel.code) if op[0] != "bra" else self.kernel.labels[operands[0]]
            )
            return True
        if op[0] in ("bar", "barrier"):
            arrived = np.bincount(self.block[chosen], minlength=len(self.shared.epoch))
            threads = np.bincount(self.block)
            if ((arrived > 0) & (arrived < threads)).any():
                raise Fault("barrier reached by a part of the block")
            self.shared.epoch[arrived > 0] += 1
        elif len(chosen):
            if op[0] in ("ld", "st"):
                self.memory(op, operands, chosen)
            elif op[:4] == ("mma", "sync", "aligned", "m16n8k8"):
                self.multiply_matrices(operands, chosen)
            else:
                self.write(operands[0], self.compute(op, operands, chosen), chosen)
        return False

    # ------------------------------------------------------------------ memory

    def memory(self, op: tuple[str, ...], operands: tuple[str, ...], ix: np.ndarray) -> None:
        store, dtype = op[0] == "st", TYPES[op[-1]]
        place, names = operands if store else operands[::-1]
        registers = [r.strip() for r in names.strip("{}").split(",")]
        width = np.dtype(dtype).itemsize
        if op[1] == "param":
            self.parameter(self.address(place, ix), registers, dtype, ix)
            return
        address = self.address(place, ix)
        if op[1] == "shared":
            where = self.shared.locate(address, width * len(registers), self.block[ix])
            self.move(self.shared.bytes, where, registers, dtype, store, ix)
            for word in range(0, width * len(registers), 4):
                self.shared.check_race((where + word) // 4, ix, self.block[ix], store)
            return
        which, offset = self.buffers.locate(address, width * len(registers))
        for buffer in np.unique(which):
            lanes, at = ix[which == buffer], offset[which == buffer]
            self.buffers.check_race(buffer, at, width * len(registers), self.thread[lanes], store)
            self.move(self.buffers.bytes[buffer], at, registers, dtype, store, lanes)

    def parameter(
        self, address: np.ndarray, registers: list[str], dtype: str, ix: np.ndarray
    ) -> None:
        width = np.dtype(dtype).itemsize
        for which in np.unique(address // PARAMETER):
            bytes_ = np.frombuffer(self.parameters[self.kernel.parameters[which]], np.uint8)
            chosen = address // PARAMETER == which
            for i, register in enumerate(registers):
                at = (address[chosen] % PARAMETER + i * width)[:, None] + np.arange(width)
                if at.max() >= len(bytes_):
                    raise Fault("read behind a parameter")
                self.write(register, bytes_[at].view(dtype)[:, 0], ix[chosen])

    def move(
        self,
        memory: np.ndarray,
        offset: np.ndarray,
        registers: list[str],
        dtype: str,
        store: bool,
        ix: np.ndarray,
    ) -> None:
        width = np.dtype(dtype).itemsize
        for i, register in enumerate(registers):
            at = (offset + i * width)[:, None] + np.arange(width)
            if store:
                memory[at] = self.read(register, dtype, ix)[:, None].view(np.uint8)
            else:
                self.write(register, memory[at].view(dtype)[:, 0], ix)

    # ------------------------------------------------------------------ arithmetic

    def multiply_matrices(self, operands: tuple[str, ...], ix: np.ndarray) -> None:
        """mma.m16n8k8 in TF32: d = a b + c, for every warp in `ix`."""
        warp = self.thread[ix] // 32
        if len(ix) % 32 or (warp.reshape(-1, 32) != warp[::32, None]).any():
            raise Fault("mma reached by a part of the warp")
        d, a, b, c = ([r.strip() for r in o.strip("{}").split(",")] for o in operands)
        lane = np.arange(32)
        g, t = lane // 4, lane % 4

        def matrix(registers: list[str], rows: Any, columns: Any) -> np.ndarray:
            """The matrix of each warp whose number in register i, lane l is at rows[i][l], ..."""
            held = [self.read(r, "f4", ix).reshape(-1, 32) for r in registers]
            out = np.empty((len(ix) // 32, 1 + np.max(rows), 1 + np.max(columns)), np.float64)
            for values, row, column in zip(held, rows, columns, strict=True):
                out[:, row, column] = values
            return out

        left = matrix(a, (g, g + 8, g, g + 8), (t, t, t + 4, t + 4))
        right = matrix(b, (t, t + 4), (g, g))
        for factor in (left, right):
            bits = factor.astype(np.float32).view(np.uint32)
            if (bits & 0x1FFF)[~np.isnan(factor)].any():
                raise Fault("mma of a number that is not TF32")
        places = (g, g, g + 8, g + 8), (2 * t, 2 * t + 1, 2 * t, 2 * t + 1)
        result = (left @ right + matrix(c, *places)).astype(np.float32)
        for register, row, column in zip(d, *places, strict=True):
            self.write(register, result[:, row, column].reshape(-1), ix)

    def compute(self, op: tuple[str, ...], operands: tuple[str, ...], ix: np.ndarray) -> np.ndarray:
        name, dtype = op[0], TYPES[op[-1]]

        def value(i: int, t: str = dtype) -> np.ndarray:
            return self.read(operands[i], t, ix)

        if name == "cvt" and op[1:3] == ("rna", "tf32"):
            return to_tf32(value(1))
        if name == "cvt":
            result = value(1).astype(TYPES[op[-2]])
            return np.clip(np.nan_to_num(result), 0, 1) if "sat" in op else result
        if name == "setp":
            relation = op[1] if op[1] in COMPARE else op[1][:2]
            result = COMPARE[relation](value(1), value(2))
            if op[1] not in COMPARE and dtype[0] == "f":  # ltu and so on: true with a NaN
                result |= COMPARE["nan"](value(1), value(2))
            return result
        if name == "selp":
            return np.where(value(3, "?"), value(1), value(2))
        if name in ("mul", "mad") and "wide" in op:
            wide = f"{dtype[0]}{2 * int(dtype[1])}"
            product = value(1).astype(wide) * value(2).astype(wide)
            return product if name == "mul" else product + value(3, wide)
        if name in ("mul", "mad") and "hi" in op:
            product = value(1).astype(f"{dtype[0]}8") * value(2).astype(f"{dtype[0]}8")
            return (product >> 32).astype(dtype)
        if name == "mul":
            return value(1) * value(2)
        if name in ("fma", "mad"):  # the product is exact in the wider type
            wide = {"f4": np.float64, "f8": np.longdouble}.get(dtype, dtype)
            return (value(1).astype(wide) * value(2).astype(wide) + value(3).astype(wide)).astype(
                dtype
            )
        if name in ("shl", "shr"):
            bits = 8 * np.dtype(dtype).itemsize
            by = np.minimum(value(2, "u4"), bits - 1).astype(dtype)
            shifted = value(1) << by if name == "shl" else value(1) >> by
            gone = (value(2, "u4") >= bits) & (dtype[0] != "i")
            return np.where(gone, 0, shifted).astype(dtype)
        if name == "div":
            return value(1) / value(2) if dtype[0] == "f" else _towards_zero(value(1), value(2))
        if name in UNARY:
            return UNARY[name](value(1))
        if name in BINARY:
            return BINARY[name](value(1), value(2))
        raise NotImplementedError(".".join(op))


def to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to 10 bits behind the point, halves away from zero, as cvt.rna.tf32 does."""
    rounded = ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.nan), rounded)


def _towards_zero(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(x) // np.abs(y) * np.sign(x) * np.sign(y)).astype(x.dtype)
