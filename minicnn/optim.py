"""Optimisers, learning-rate schedules and gradient clipping."""

import math
from copy import deepcopy
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from minicnn.backend import Array, array_module, kernels_for
from minicnn.checkpoint import net_arrays
from minicnn.layers import Layer

Net = TypeVar("Net", bound=Layer)


class Optimizer:
    """Reads a net's gradients, moves its parameters in place.

    `lr` may be set between steps (a schedule does). `state()` is all that a resumed run needs.
    """

    slots: tuple[str, ...] = ()  # the running averages kept for each parameter

    def __init__(self, net: Layer, lr: float, weight_decay: float = 0.0) -> None:
        self.net, self.lr, self.weight_decay = net, lr, weight_decay
        self.steps = 0
        self.averages: dict[str, Array] = {
            f"{slot}.{name}": array_module(p).zeros_like(p)
            for slot in self.slots
            for name, p in net.parameters().items()
        }

    def step(self) -> None:
        """One update of every parameter from its gradient."""
        self.steps += 1
        gradients = self.net.gradients()
        for name, p in self.net.parameters().items():
            averages = (self.averages[f"{slot}.{name}"] for slot in self.slots)
            kernels_for(p).in_pieces(self._move, p, gradients[name], *averages)

    def _move(self, p: Array, g: Array, *averages: Array) -> None:
        p -= self.update(p, g, *averages)

    def update(self, p: Array, g: Array, *averages: Array) -> Array:
        """What to subtract from parameter `p` with gradient `g`; moves the averages in place."""
        raise NotImplementedError

    def state(self) -> dict[str, Array]:
        """The averages and the step count, as arrays by name."""
        return {**self.averages, "steps": np.array(self.steps, np.int64)}

    def load_state(self, state: dict[str, Array]) -> None:
        """Continue from `state()`, on whatever device the parameters are."""
        self.steps = int(state["steps"])
        for name, average in self.averages.items():
            average[...] = array_module(average).asarray(state[name])


class SGD(Optimizer):
    """v = momentum v + g + decay p; p -= lr v."""

    slots = ("velocity",)

    def __init__(
        self, net: Layer, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(net, lr, weight_decay)
        self.momentum = momentum

    def update(self, p: Array, g: Array, *averages: Array) -> Array:
        (velocity,) = averages
        velocity *= self.momentum
        velocity += g + self.weight_decay * p
        return self.lr * velocity


class Adam(Optimizer):
    """m, v = averages of g and g^2, corrected for starting at 0; p -= lr m / (sqrt(v) + eps).

    Kingma & Ba 2015, arXiv:1412.6980. `weight_decay` is added to the gradient.
    """

    slots = ("m", "v")

    def __init__(
        self,
        net: Layer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(net, lr, weight_decay)
        self.betas, self.eps = betas, eps

    def step(self) -> None:
        parameters, gradients = self.net.parameters(), self.net.gradients()
        fused = kernels_for(next(iter(parameters.values()))).adam
        if fused is None or any(p.dtype != np.float32 for p in parameters.values()):
            return super().step()
        self.steps += 1
        rows = [
            (p, gradients[name], self.averages[f"m.{name}"], self.averages[f"v.{name}"])
            for name, p in parameters.items()
        ]
        fused(rows, self.betas, *self._corrected(), self.eps, *self._decays())

    def _corrected(self) -> tuple[float, float]:
        """The step and the divisor of sqrt(v), with which averages that start at 0 are right."""
        beta1, beta2 = self.betas
        return self.lr / (1 - beta1**self.steps), math.sqrt(1 - beta2**self.steps)

    def _decays(self) -> tuple[float, float]:
        """How much of a parameter is added to its gradient, and taken off the parameter."""
        return self.weight_decay, 0.0

    def update(self, p: Array, g: Array, *averages: Array) -> Array:
        decay, shrink = self._decays()
        if decay:
            g = g + decay * p
        step = self.adaptive(g, *averages)
        return step + shrink * p if shrink else step

    def adaptive(self, g: Array, m: Array, v: Array) -> Array:
        """Adam's step for gradient `g`."""
        beta1, beta2 = self.betas
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g * g - v)
        step, root = self._corrected()
        return step * m / (array_module(v).sqrt(v) / root + self.eps)


class AdamW(Adam):
    """Adam with the decay applied to the parameter itself, not through the averages.

    Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def _decays(self) -> tuple[float, float]:
        return 0.0, self.lr * self.weight_decay


class Average(Generic[Net]):
    """A net like the one that is trained, whose every array is the running average of that one's.

    a += (1 - d) (p - a), with d = min(decay, t / (9 + t)) at update t, so that the start is soon
    forgotten. The average is better than the net at any moment, as if the learning rate had come
    down (Polyak & Juditsky 1992, https://doi.org/10.1137/0330046). The running statistics of batch
    norm are averaged as well. After the first 100 updates only every tenth is taken note of, by
    d^10: on a GPU each array costs a launch.
    """

    def __init__(self, net: Net, decay: float = 0.999) -> None:
        self.net, self.trained, self.decay = deepcopy(net), net, decay

    def update(self, t: int) -> None:
        """Take note of the net's arrays after its update number t, from 1."""
        every = 1 if t <= 100 else 10
        if t % every:
            return
        share = 1 - min(self.decay, t / (9 + t)) ** every
        new = net_arrays(self.trained)
        for name, a in net_arrays(self.net).items():
            kernels_for(a).in_pieces(partial(_approach, share), a, new[name])


def _approach(share: float, a: Array, p: Array) -> None:
    a += share * (p - a)


def clip_gradients(net: Layer, max_norm: float) -> float:
    """Scale all gradients together so that their joint norm is at most `max_norm`.

    Returns the norm before. Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063.
    """
    gradients = net.gradients().values()
    norm = math.sqrt(sum(float((g * g).sum(dtype=float)) for g in gradients))
    if norm > max_norm:
        for g in gradients:
            g *= max_norm / norm
    return norm


class Constant:
    """The same learning rate at every step."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def at(self, step: int) -> float:
        return self.lr


class Cosine:
    """Up in a line over `warmup` steps, then down half a cosine to 0 at step `steps`.

    Loshchilov & Hutter 2017, arXiv:1608.03983.
    """

    def __init__(self, lr: float, steps: int, warmup: int = 0) -> None:
        self.lr, self.steps, self.warmup = lr, steps, warmup

    def at(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (1 + math.cos(math.pi * min(1.0, done))) / 2


class ReduceOnPlateau:
    """Multiply the rate by `factor` after more than `patience` observations without a rise."""

    def __init__(self, lr: float, factor: float = 0.5, patience: int = 5) -> None:
        self.lr, self.factor, self.patience = lr, factor, patience
        self.best, self.waited = -math.inf, 0

    def at(self, step: int) -> float:
        return self.lr

    def observe(self, score: float) -> None:
        """Take note of an epoch's score, higher being better."""
        self.waited = 0 if score > self.best else self.waited + 1
        self.best = max(self.best, score)
        if self.waited > self.patience:
            self.lr, self.waited = self.lr * self.factor, 0
