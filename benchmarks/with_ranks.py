"""Training steps on the ranks that mpiexec started: one for each line on rank 0's stdin.

An answer is a line of JSON: seconds of the step, of it in the message with all gradients, and in
the small ones of batch norm and losses; both include waiting for the rank that comes last.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

import minicnn as mc
from minicnn.ranks import sharing
from segment.train.ranks import World, join
from segment.train.trainer import LOSS
from segment.unet import UNet


class Net:
    """This rank's part of a training on `batch` tiles."""

    def __init__(self, world: World, batch: int, tile: int) -> None:
        rng = np.random.default_rng(world.rank)
        part = batch // world.count
        self.world = world
        self.x = rng.random((part, tile, tile, 3), np.float32)
        self.labels = (rng.random((part, tile, tile, 1)) > 0.8).astype(np.float32)
        self.net = UNet()
        self.optimizer = mc.optim.Adam(self.net, lr=1e-3)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        for name in ("merge", "sum"):
            setattr(world, name, self._timed(name, getattr(world, name)))

    def _timed(self, name: str, f: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = f(*arguments)
            self.seconds[name] += time.perf_counter() - started
            return result

        return timed

    def step(self) -> tuple[float, float, float]:
        self.seconds.clear()
        started = time.perf_counter()
        logits = self.net.forward(self.x, training=True)
        _, dlogits = LOSS(logits, self.labels)
        self.net.backward(dlogits)
        self.world.merge(self.net)
        self.optimizer.step()
        return time.perf_counter() - started, self.seconds["merge"], self.seconds["sum"]

    def gradients_alone(self) -> float:
        """Seconds of the message with all gradients when no rank has to wait for another."""
        times = []
        for _ in range(20):
            self.world.highest(0)
            started = time.perf_counter()
            self.world.merge(self.net)
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2]


def main() -> None:
    batch, tile = map(int, sys.argv[1:])
    with join() as world, sharing(world):
        net = Net(world, batch, tile)
        net.step()
        print(json.dumps(net.gradients_alone()), flush=True)
        while True:
            told = world.rank == 0 and bool(sys.stdin.readline())
            world.wait()  # asleep, while other contenders are timed
            if not world.highest(told):
                break
            print(json.dumps(net.step()), flush=True)


if __name__ == "__main__":
    main()
