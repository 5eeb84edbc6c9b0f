"""Optimisers, the running average of a net, and learning-rate schedules."""

import math
from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from minicnn.backend import Array, array_module, kernels_for
from minicnn.checkpoint import net_arrays
from minicnn.layers import Layer
from minicnn.ranks import in_force

Net = TypeVar("Net", bound=Layer)


class Optimizer:
    """Reads a net's gradients, moves its parameters in place.

    `only` names the parameters to move; by default all. `lr` may be set between steps (a schedule
    does). `state()` is all that a resumed run needs.
    """

    slots: tuple[str, ...] = ()  # the running averages kept for each parameter

    def __init__(self, net: Layer, lr: float, only: Iterable[str] | None = None) -> None:
        self.net, self.lr = net, lr
        self.names = tuple(net.parameters() if only is None else only)
        self.steps = 0
        self.averages: dict[str, Array] = {
            f"{slot}.{name}": array_module(p).zeros_like(p)
            for slot in self.slots
            for name, p in self.parameters().items()
        }

    def parameters(self) -> dict[str, Array]:
        """The parameters that this optimiser moves."""
        parameters = self.net.parameters()
        return {name: parameters[name] for name in self.names}

    def step(self) -> None:
        """One update of every parameter from its gradient."""
        self.steps += 1
        gradients = self.net.gradients()
        for name, p in self.parameters().items():
            averages = (self.averages[f"{slot}.{name}"] for slot in self.slots)
            kernels_for(p).in_pieces(self._move, p, gradients[name], *averages)

    def _move(self, p: Array, g: Array, *averages: Array) -> None:
        p -= self.update(g, *averages)

    def update(self, g: Array, *averages: Array) -> Array:
        """What to subtract from a parameter with gradient `g`; moves the averages in place."""
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
    """v = momentum v + g; p -= lr v."""

    slots = ("velocity",)

    def __init__(self, net: Layer, lr: float, momentum: float = 0.9) -> None:
        super().__init__(net, lr)
        self.momentum = momentum

    def update(self, g: Array, *averages: Array) -> Array:
        (velocity,) = averages
        velocity *= self.momentum
        velocity += g
        return self.lr * velocity


class Adam(Optimizer):
    """m, v = averages of g and g^2, corrected for starting at 0; p -= lr m / (sqrt(v) + eps).

    Kingma & Ba 2015, arXiv:1412.6980.
    """

    slots = ("m", "v")

    def __init__(
        self,
        net: Layer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        only: Iterable[str] | None = None,
    ) -> None:
        super().__init__(net, lr, only)
        self.betas, self.eps = betas, eps

    def step(self) -> None:
        parameters, gradients = self.parameters(), self.net.gradients()
        fused = next((kernels_for(p).adam for p in parameters.values()), None)
        if fused is None or any(p.dtype != np.float32 for p in parameters.values()):
            return super().step()
        self.steps += 1
        rows = [
            (p, gradients[name], self.averages[f"m.{name}"], self.averages[f"v.{name}"])
            for name, p in parameters.items()
        ]
        fused(rows, self.betas, *self._corrected(), self.eps)

    def _corrected(self) -> tuple[float, float]:
        """The step and the divisor of sqrt(v), with which averages that start at 0 are right."""
        beta1, beta2 = self.betas
        return self.lr / (1 - beta1**self.steps), math.sqrt(1 - beta2**self.steps)

    def update(self, g: Array, *averages: Array) -> Array:
        m, v = averages
        beta1, beta2 = self.betas
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g * g - v)
        step, root = self._corrected()
        return step * m / (array_module(v).sqrt(v) / root + self.eps)


class Muon(Optimizer):
    """Turns each kernel's momentum into the nearest rotation before stepping along it.

    A kernel is read as the matrix W (K K C, F) that multiplies a window. With g its gradient,

        m = momentum m + (1 - momentum) g,    u = g + momentum (m - g),
        W -= lr |W| / sqrt(r) orthogonalised(u),    then W is scaled back to its first length,

    where r = min(K K C, F) and |.| is the Frobenius norm: so lr is the share of its length that a
    kernel moves by. The length itself says nothing where batch norm follows. In a gradient a few
    directions drown all others; made orthogonal, all count the same (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/). Biases, scales and 1 x 1 kernels, which the net's
    head is, are left to Adam at the rate lr `adam`.

    Ranks that share a batch share this work as well: each turns some of the kernels.
    """

    slots = ("momentum",)

    def __init__(
        self, net: Layer, lr: float = 0.03, momentum: float = 0.95, adam: float = 1 / 15
    ) -> None:
        kernels = [name for name, p in net.parameters().items() if _is_kernel(p)]
        super().__init__(net, lr, kernels)
        self.momentum, self.share = momentum, adam
        self.adam = Adam(net, lr * adam, only=[n for n in net.parameters() if n not in kernels])
        self.lengths = {  # arrays, for a checkpoint to hold
            f"length.{name}": array_module(p).sqrt((p * p).sum(keepdims=True))
            for name, p in self.parameters().items()
        }

    def step(self) -> None:
        self.steps += 1
        self.adam.lr = self.lr * self.share
        self.adam.step()
        gradients, parameters = self.net.gradients(), self.parameters()
        rows = [
            (p, gradients[name], self.averages[f"momentum.{name}"], self.lengths[f"length.{name}"])
            for name, p in sorted(parameters.items(), key=lambda item: -item[1].size)
        ]  # the long ones first
        kernels = kernels_for(next(iter(gradients.values())))
        together = [row for row in rows if kernels.suits_muon(row[0])]
        if together:
            kernels.muon(together, self.lr, self.momentum, NEWTON_SCHULZ, ROUNDS)
        alone = [row for row in rows if not kernels.suits_muon(row[0])]
        ranks = in_force()  # and about the multiplications of the tall products and the small ones
        work = [(p.size + 11 * p.shape[-1] ** 2) * p.shape[-1] for p, *_ in alone]
        owners = ranks.shared_out(work)
        own = [owner == ranks.rank for owner in owners]

        def turn(number: int) -> None:
            p, g, m, length = alone[number]
            u = array_module(p).empty_like(p)
            kernels.in_pieces(self._look_ahead, g, m, u)
            if own[number]:
                self._turn(p, u.reshape(-1, p.shape[-1]), length)

        kernels.for_each(turn, len(alone))
        ranks.hand_round([p for p, *_ in alone], owners)

    def _look_ahead(self, g: Array, m: Array, u: Array) -> None:
        """m and u as above, u = (1 - momentum) g + momentum m: piece by piece in cache."""
        u[...] = (1 - self.momentum) * g
        m *= self.momentum
        m += u
        u += self.momentum * m

    def _turn(self, p: Array, u: Array, length: Array) -> None:
        """Move kernel `p` along u (K K C, F)."""
        step = orthogonalised(u).reshape(p.shape)
        step *= length * (self.lr / math.sqrt(min(u.shape)))
        p -= step
        xp = array_module(p)
        p *= length / xp.sqrt(xp.vdot(p, p))

    def state(self) -> dict[str, Array]:
        inner = {f"adam.{name}": array for name, array in self.adam.state().items()}
        return {**super().state(), **self.lengths, **inner}

    def load_state(self, state: dict[str, Array]) -> None:
        super().load_state(state)
        for name, length in self.lengths.items():
            length[...] = array_module(length).asarray(state[name])
        self.adam.load_state(
            {n.removeprefix("adam."): array for n, array in state.items() if n.startswith("adam.")}
        )


def _is_kernel(p: Array) -> bool:
    return bool(p.ndim == 4 and p.shape[0] * p.shape[1] > 1)


NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # Jordan's: brings what is above 0.003 to about 1
ROUNDS = 5


def orthogonalised(u: Array, rounds: int = ROUNDS) -> Array:
    """U V^T of u = U S V^T (m, n), with singular values that are only nearly 1: of 0.7 to 1.2.

    The Newton-Schulz iteration X <- X (a I + b A + c A A), A = X^T X, from X = u / |u| on. Each
    factor Q is a polynomial of A, so it commutes with A, and both can be carried on without X:
    A <- Q A Q, P <- P Q, and X = u P / |u| at the end. What is iterated is then only as large as
    the smaller side of u. |u|^2 is the trace of u^T u.
    """
    if u.shape[0] < u.shape[1]:
        return orthogonalised(u.T, rounds).T
    xp = array_module(u)
    gram = u.T @ u  # (n, n)
    square = xp.trace(gram) + 1e-36  # |u|^2
    gram /= square
    a, b, c = NEWTON_SCHULZ
    one = xp.eye(len(gram), dtype=u.dtype)
    product = a * one + b * gram + c * (gram @ gram)
    factor = product
    for _ in range(rounds - 1):
        gram = factor @ gram @ factor
        factor = a * one + b * gram + c * (gram @ gram)
        product = product @ factor
    return u @ (product / xp.sqrt(square))


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
