"""Layers: an op with its parameters, and the memory of one forward pass for the backward one."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from minicnn.backend import Array, kernels_for, to_device
from minicnn.ops import BlockWeights, Pad, Statistics, conv_size, pads, same_pad, transpose_size
from minicnn.ranks import parts

Shape = tuple[int, ...]
MOMENTUM = 0.1  # share of the newest batch in the running statistics


class Layer:
    """The base: `forward` remembers, `backward` consumes the memory, `predict` does neither.

    A subclass fills `params` and `state` (its own arrays by name), lists its parts in `children`,
    and says in `apply` which op it is, or else how it goes forward and predicts. `backward` leaves
    a gradient in `grads` for every entry of `params`.
    """

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.state: dict[str, Array] = {}
        self.cache: Any = None
        self.kept: dict[str, Any] = {}  # what inference made of the weights, for use again

    def apply(self, x: Array) -> Any:
        """The op: the layer's output, and the cache that `backward` will need."""
        raise NotImplementedError

    def forward(self, x: Array, training: bool = False) -> Array:
        """The layer's output; what `backward` will need is kept."""
        y, self.cache = self.apply(x)
        return y

    def backward(self, dy: Array) -> Array:
        """From the gradient of the output to that of the input; fills `grads`."""
        raise NotImplementedError

    def predict(self, x: Array) -> Array:
        """The output in inference; `backward` gets nothing from it. Several threads may call it."""
        return self.apply(x)[0]

    def output_shape(self, shape: Shape) -> Shape:
        """The output's (N, H, W, C) for an input's."""
        return shape

    def children(self) -> dict[str, "Layer"]:
        """The layers this one is made of, by name."""
        return {}

    def walk(self, name: str = "") -> Iterator[tuple[str, "Layer"]]:
        """This layer and all below it, each with its dotted name."""
        yield name, self
        for key, child in self.children().items():
            yield from child.walk(f"{name}.{key}" if name else key)

    def parameters(self) -> dict[str, Array]:
        """Every trainable array by its dotted name, such as "encoder0.0.w"."""
        return self._collect("params")

    def gradients(self) -> dict[str, Array]:
        """The gradients of the last backward pass, under the names of the parameters."""
        return self._collect("grads")

    def buffers(self) -> dict[str, Array]:
        """What is learnt without a gradient: the running statistics."""
        return self._collect("state")

    def _collect(self, kind: str) -> dict[str, Array]:
        return {
            f"{name}.{key}" if name else key: array
            for name, layer in self.walk()
            for key, array in getattr(layer, kind).items()
        }

    def to(self, device: str) -> "Layer":
        """Move every array to "cpu" or "gpu"; float64 and float32 stay what they are."""
        return self._convert(lambda array: to_device(array, device))

    def astype(self, dtype: Any) -> "Layer":
        """Convert every array, to float64 for a gradient check."""
        return self._convert(lambda array: array.astype(dtype))

    def _convert(self, function: Any) -> "Layer":
        for _, layer in self.walk():
            for arrays in (layer.params, layer.grads, layer.state):
                for key, array in arrays.items():
                    arrays[key] = function(array)
            layer.cache, layer.kept = None, {}
        return self

    def freeze(self) -> "Layer":
        """Make every array read-only: inference then need not look whether they have changed.

        `astype`, and `to` another device, put new, writable arrays in their place.
        """
        for _, layer in self.walk():
            for array in (*layer.params.values(), *layer.state.values()):
                if isinstance(array, np.ndarray):
                    array.flags.writeable = False
        return self

    def recall(self) -> Any:
        """The memory of the forward pass, handed out once."""
        if self.cache is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward needs a forward pass of its own first "
                "(a layer serves one place in a network)"
            )
        cache, self.cache = self.cache, None
        return cache


def he_normal(rng: np.random.Generator, shape: Shape, fan_in: float) -> np.ndarray:
    """Normal weights of variance 2 / fan_in, which keep a ReLU net's signal (He et al. 2015)."""
    return np.asarray(rng.standard_normal(shape) * np.sqrt(2 / fan_in), np.float32)


def _zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.float32)


def _ones(size: int) -> np.ndarray:
    return np.ones(size, np.float32)


class Conv2d(Layer):
    """F filters of kernel x kernel pixels over C channels; see `minicnn.ops.conv2d`."""

    def __init__(
        self,
        C: int,
        F: int,
        kernel: int,
        stride: int = 1,
        pad: Pad = 0,
        *,
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        self.stride, self.pad = stride, pad
        weights = he_normal(rng, (kernel, kernel, C, F), kernel * kernel * C)
        self.params = {"w": weights, "b": _zeros(F)}

    def apply(self, x: Array) -> Any:
        return kernels_for(x).conv2d(x, self.params["w"], self.params["b"], self.stride, self.pad)

    def backward(self, dy: Array) -> Array:
        dx, dw, db = kernels_for(dy).conv2d_backward(dy, self.recall())
        self.grads = {"w": dw, "b": db}
        return dx

    def output_shape(self, shape: Shape) -> Shape:
        K, _, _, F = self.params["w"].shape
        return _spatial(conv_size, shape, K, self.stride, self.pad, F)


class ConvTranspose2d(Layer):
    """Upsampling by learnt windows; see `minicnn.ops.conv_transpose2d`."""

    def __init__(
        self,
        C: int,
        F: int,
        kernel: int,
        stride: int = 2,
        crop: Pad = 0,
        *,
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        self.stride, self.crop = stride, crop
        fan_in = kernel * kernel * C / stride**2  # windows overlap: what reaches one output pixel
        self.params = {"w": he_normal(rng, (kernel, kernel, F, C), fan_in), "b": _zeros(F)}

    def apply(self, x: Array) -> Any:
        w, b = self.params["w"], self.params["b"]
        return kernels_for(x).conv_transpose2d(x, w, b, self.stride, self.crop)

    def backward(self, dy: Array) -> Array:
        dx, dw, db = kernels_for(dy).conv_transpose2d_backward(dy, self.recall())
        self.grads = {"w": dw, "b": db}
        return dx

    def output_shape(self, shape: Shape) -> Shape:
        K, _, F, _ = self.params["w"].shape
        return _spatial(transpose_size, shape, K, self.stride, self.crop, F)


def _spatial(size: Any, shape: Shape, K: int, stride: int, pad: Pad, F: int) -> Shape:
    N, H, W, _ = shape
    rows, columns = pads(pad)
    return N, size(H, K, stride, *rows), size(W, K, stride, *columns), F


def running_statistics(state: dict[str, Array]) -> Statistics:
    """The statistics that inference uses in place of a batch's own."""
    return Statistics(state["mean"], state["var"])


def update_running(state: dict[str, Array], batch: Statistics, pixels: int) -> None:
    """Move the running statistics towards the batch's; the variance made unbiased, n / (n - 1)."""
    count = parts() * pixels
    unbias = count / max(1, count - 1)
    fused = kernels_for(batch.mean).update_running
    if fused and batch.mean.dtype == np.float32:
        fused(state["mean"], state["var"], batch, MOMENTUM, unbias)
        return
    state["mean"] = (1 - MOMENTUM) * state["mean"] + MOMENTUM * batch.mean
    state["var"] = (1 - MOMENTUM) * state["var"] + MOMENTUM * unbias * batch.var


class BatchNorm2d(Layer):
    """Normalise each channel over the batch; in inference by running averages."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.params = {"gamma": _ones(C), "beta": _zeros(C)}
        self.state = {"mean": _zeros(C), "var": _ones(C)}

    def forward(self, x: Array, training: bool = False) -> Array:
        statistics = None if training else running_statistics(self.state)
        y, self.cache = self._apply(x, statistics)
        if training:
            update_running(self.state, self.cache.statistics, y.size // y.shape[3])
        return y

    def backward(self, dy: Array) -> Array:
        dx, dgamma, dbeta = kernels_for(dy).batch_norm_backward(dy, self.recall())
        self.grads = {"gamma": dgamma, "beta": dbeta}
        return dx

    def predict(self, x: Array) -> Array:
        return self._apply(x, running_statistics(self.state))[0]

    def _apply(self, x: Array, statistics: Statistics | None) -> Any:
        gamma, beta = self.params["gamma"], self.params["beta"]
        return kernels_for(x).batch_norm(x, gamma, beta, statistics)


class ReLU(Layer):
    """max(x, 0)."""

    def apply(self, x: Array) -> Any:
        return kernels_for(x).relu(x)

    def backward(self, dy: Array) -> Array:
        return kernels_for(dy).relu_backward(dy, self.recall())


class MaxPool2d(Layer):
    """The largest value of each size x size area; see `minicnn.ops.max_pool2d`."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size = size

    def apply(self, x: Array) -> Any:
        return kernels_for(x).max_pool2d(x, self.size)

    def backward(self, dy: Array, other: Array | None = None) -> Array:
        """dx; plus `other`, the gradient that reached x by another way."""
        return kernels_for(dy).max_pool2d_backward(dy, self.recall(), other)

    def output_shape(self, shape: Shape) -> Shape:
        return _spatial(conv_size, shape, self.size, self.size, 0, shape[3])


class ConvBlock(Layer):
    """relu(batch_norm(conv2d([x, skip]))) with 'same' padding: the block the U-Net is made of.

    One layer over one op, `conv_bn_relu`, so that the fast kernels can fuse its three steps.
    `skip` counts the channels of an optional second input, joined behind the first.
    """

    def __init__(
        self, C: int, F: int, kernel: int, skip: int = 0, *, rng: np.random.Generator
    ) -> None:
        super().__init__()
        self.pad = same_pad(kernel)
        weights = he_normal(rng, (kernel, kernel, C + skip, F), kernel * kernel * (C + skip))
        self.params = {"w": weights, "b": _zeros(F), "gamma": _ones(F), "beta": _zeros(F)}
        self.state = {"mean": _zeros(F), "var": _ones(F)}

    def forward(self, x: Array, training: bool = False, skip: Array | None = None) -> Array:
        statistics = None if training else running_statistics(self.state)
        kernel, weights = kernels_for(x).conv_bn_relu, BlockWeights(**self.params)
        y, self.cache = kernel(x, skip, weights, statistics, self.pad)
        if training:
            update_running(self.state, self.cache.statistics, y.size // y.shape[3])
        return y

    def backward(self, dy: Array) -> Array:
        """dx; for a block without a second input."""
        return self.backward_both(dy)[0]

    def backward_both(self, dy: Array, need_dx: bool = True) -> tuple[Array, Array]:
        """dx and dskip; None for both without `need_dx`, which spares the first block the work."""
        dx, dskip, gradients = kernels_for(dy).conv_bn_relu_backward(dy, self.recall(), need_dx)
        self.grads = gradients._asdict()
        return dx, dskip

    def predict(self, x: Array, skip: Array | None = None) -> Array:
        kernel, statistics = kernels_for(x).conv_bn_relu_predict, running_statistics(self.state)
        return kernel(x, skip, BlockWeights(**self.params), statistics, self.pad, self.kept)

    def output_shape(self, shape: Shape) -> Shape:
        return *shape[:3], self.params["w"].shape[3]


class Sequential(Layer):
    """Layers in a row. Its backward pass is its forward pass in the mirror."""

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        if len(set(map(id, layers))) < len(layers):
            raise ValueError("a layer may stand only once in a network")
        self.layers = layers

    def forward(self, x: Array, training: bool = False) -> Array:
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dy: Array) -> Array:
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def predict(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer.predict(x)
        return x

    def output_shape(self, shape: Shape) -> Shape:
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def children(self) -> dict[str, Layer]:
        return {str(index): layer for index, layer in enumerate(self.layers)}
