"""Is a hand-written gradient right? One random direction tells, however many numbers there are.

For y = f(a) and any upstream dy, the backward pass must satisfy, along every direction v,
    <dy, (f(a + e v) - f(a - e v)) / 2e>  =  <f_backward(dy), v>.
Both dy and v are random: with dy = 1 a batch norm's gradient is 0 whatever the code says.
Use float64; float32 has too few digits for the difference.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minicnn.backend import Array, array_module
from minicnn.layers import Layer

STEP = 1e-6


def check_gradients(
    f: Callable[..., tuple[Array, Any]],
    f_backward: Callable[[Array, Any], Any],
    *arrays: Array,
    rng: np.random.Generator,
    tolerance: float = 1e-6,
) -> float:
    """Check an op pair at `arrays`: `f(*arrays) -> (y, cache)`, `f_backward(dy, cache) -> grads`.

    Returns the relative error; AssertionError if it is above `tolerance`.
    """
    y, cache = f(*arrays)
    dy = _draw(rng, y)
    gradients = f_backward(dy, cache)
    if not isinstance(gradients, tuple):
        gradients = (gradients,)
    return _compare(lambda *moved: f(*moved)[0], dy, arrays, gradients, rng, tolerance)


def check_layer(
    layer: Layer,
    x: Array,
    *,
    rng: np.random.Generator,
    training: bool = True,
    tolerance: float = 1e-6,
    **backward: Any,
) -> float:
    """Check a float64 layer or a whole net: the gradients of `x` and of every parameter."""
    parameters = layer.parameters()

    def f(x: Array, *values: Array) -> Array:
        for parameter, value in zip(parameters.values(), values, strict=True):
            parameter[...] = value
        return layer.forward(x, training)

    values = [parameter.copy() for parameter in parameters.values()]
    y = f(x, *values)
    dy = _draw(rng, y)
    dx = layer.backward(dy, **backward)
    gradients = [dx, *(layer.gradients()[name] for name in parameters)]
    try:
        return _compare(f, dy, (x, *values), gradients, rng, tolerance)
    finally:
        f(x, *values)


def _draw(rng: np.random.Generator, like: Array) -> Array:
    return array_module(like).asarray(rng.standard_normal(like.shape))


def _compare(
    f: Callable[..., Array],
    dy: Array,
    arrays: Sequence[Array],
    gradients: Sequence[Array],
    rng: np.random.Generator,
    tolerance: float,
) -> float:
    directions = [_draw(rng, a) for a in arrays]
    ahead = f(*(a + STEP * v for a, v in zip(arrays, directions, strict=True)))
    behind = f(*(a - STEP * v for a, v in zip(arrays, directions, strict=True)))
    numeric = float((dy * (ahead - behind)).sum()) / (2 * STEP)
    exact = sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True))
    error = abs(numeric - exact) / max(1.0, abs(numeric), abs(exact))
    assert error <= tolerance, f"gradient {exact} but finite difference {numeric}"
    return error
