"""A network as a table: each layer, the shape it puts out, and what it learns."""

from collections.abc import Iterable
from typing import NamedTuple

from minicnn.layers import Layer, Shape


class Counts(NamedTuple):
    """Numbers a net holds: those trained by gradients, and those that are not."""

    trainable: int
    fixed: int

    @property
    def total(self) -> int:
        return self.trainable + self.fixed


def count(layer: Layer) -> Counts:
    """How many numbers `layer` holds."""
    return Counts(
        sum(p.size for p in layer.parameters().values()),
        sum(b.size for b in layer.buffers().values()),
    )


def table(stages: Iterable[tuple[str, Layer, Shape]]) -> str:
    """A row per layer from (name, layer, output shape), and the totals below."""
    rows = [("layer", "kind", "output", "parameters")]
    trainable = fixed = 0
    for name, layer, shape in stages:
        counts = count(layer)
        trainable, fixed = trainable + counts.trainable, fixed + counts.fixed
        output = " x ".join(str(size) for size in shape[1:])
        rows.append((name, type(layer).__name__, output, f"{counts.total:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}"
        for a, b, c, d in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    totals = f"{trainable + fixed:,} parameters: {trainable:,} trainable, {fixed:,} not"
    return "\n".join([*lines, lines[1], totals])
