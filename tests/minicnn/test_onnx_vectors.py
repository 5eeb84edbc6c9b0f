"""ONNX's own node vectors as an oracle: inputs and outputs that its makers ship for each operator.

And the small models that it ships as files. Only what the ops can express is run: 2-D images,
square windows, no groups, no dilation, our epsilon, no weight decay. How many vectors that are is
asserted, so that none is lost in silence.
"""

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minicnn import losses, ops
from minicnn.kernels import cpu
from minicnn.ops import Statistics

EXPRESSIBLE = 22


class InexpressibleError(Exception):
    """What the ops have no word for."""


def need(condition):
    if not condition:
        raise InexpressibleError


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def around(attributes, total):
    """The pads (top, left, bottom, right) of so many: the odd one at the end, or the start."""
    small, large = [n // 2 for n in total], [n - n // 2 for n in total]
    upper = attributes["auto_pad"] == b"SAME_UPPER"
    return [*small, *large] if upper else [*large, *small]


def square(attributes, x, w, transposed=False):
    """Stride and pads of a convolution, as the ops take them."""
    need(x.ndim == 4 and attributes.get("group", 1) == 1 and w.shape[2] == w.shape[3])
    need(set(attributes.get("dilations", [1])) == {1})
    strides = attributes.get("strides", [1, 1])
    need(strides[0] == strides[1])
    stride, K, sides = strides[0], w.shape[2], x.shape[2:]
    same = attributes.get("auto_pad", b"").startswith(b"SAME")
    more = attributes.get("output_padding", [0, 0]) if transposed else [0, 0]
    pads = attributes.get("pads", [0] * 4)
    if transposed and (same or "output_shape" in attributes):
        out = attributes.get("output_shape", [n * stride for n in sides])[-2:]
        painted = [stride * (n - 1) + K for n in sides]
        total = [n + extra - o for n, extra, o in zip(painted, more, out, strict=True)]
        pads = around(attributes if same else LOWER, total)
    elif same:
        total = [max(0, (-(-n // stride) - 1) * stride + K - n) for n in sides]
        pads = around(attributes, total)
    top, left, bottom, right = pads
    pads = (top, bottom - more[0]), (left, right - more[1])
    need(min(*pads[0], *pads[1]) >= 0)
    return stride, pads


LOWER = {"auto_pad": b"SAME_LOWER"}


def conv(kernels, attributes, x, w, b=None):
    stride, pads = square(attributes, x, w)
    b = np.zeros(len(w), x.dtype) if b is None else b
    weights = np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    return nchw(kernels.conv2d(nhwc(x), weights, b, stride, pads)[0])


def conv_transpose(kernels, attributes, x, w, b=None):
    stride, pads = square(attributes, x, w, transposed=True)
    b = np.zeros(w.shape[1], x.dtype) if b is None else b
    weights = np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    return nchw(kernels.conv_transpose2d(nhwc(x), weights, b, stride, pads)[0])


def max_pool(kernels, attributes, x):
    need(x.ndim == 4 and x.dtype == np.float32 and not any(attributes.get("pads", [0])))
    need(attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID"))
    size, strides = attributes["kernel_shape"], attributes.get("strides", [1, 1])
    need(len({*size, *strides}) == 1 and set(attributes.get("dilations", [1])) == {1})
    need(not attributes.get("ceil_mode") or not any(n % size[0] for n in x.shape[2:]))
    return nchw(kernels.max_pool2d(nhwc(x), size[0])[0])


def batch_norm(kernels, attributes, x, gamma, beta, mean, var):
    need(x.ndim == 4 and abs(attributes.get("epsilon", 1e-5) - ops.EPS) < 1e-9)
    given = None if attributes.get("training_mode") else Statistics(mean, var)
    return nchw(kernels.batch_norm(nhwc(x), gamma, beta, given)[0])


def relu(kernels, attributes, x):
    need(x.dtype in (np.float32, np.float64))
    return kernels.relu(x)[0]


def sigmoid(kernels, attributes, x):
    need(x.dtype in (np.float32, np.float64))
    return losses.sigmoid(x)


OPERATORS = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "BatchNormalization": batch_norm,
    "Relu": relu,
    "Sigmoid": sigmoid,
}


def tensor(x):
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x)


def expressible(model):
    """Whether every operator is one of those above, for all that its name says."""
    return all(node.op_type in OPERATORS for node in model.graph.node)


def stored():
    """The models that ONNX ships as files, PyTorch's own among them."""
    import onnx

    for file in sorted(Path(onnx.__file__).parent.glob("backend/test/data/*/*/model.onnx")):
        model = onnx.load(str(file))
        if expressible(model):
            for data in sorted(file.parent.glob("test_data_set_*")):
                read = [
                    [
                        tensor(onnx.load_tensor(str(data / f"{kind}_{i}.pb")))
                        for i in range(len(list(data.glob(f"{kind}_*.pb"))))
                    ]
                    for kind in ("input", "output")
                ]
                yield file.parent.name, model, read[0], read[1][0]


def made():
    """The vectors of single operators, which ONNX makes when asked."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():  # numbers that overflow on purpose, of other operators
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            if case.model and expressible(case.model):
                for inputs, outputs in case.data_sets or ():
                    yield case.name, case.model, list(map(tensor, inputs)), tensor(outputs[0])


@cache
def vectors():
    """All of them: name, model, inputs, first output."""
    return [*made(), *stored()]


def answer(kernels, model, inputs):
    """The first output of a model, node by node."""
    from onnx import helper

    values = {x.name: tensor(x) for x in model.graph.initializer}
    wanted = [x.name for x in model.graph.input if x.name not in values]
    values |= dict(zip(wanted, inputs, strict=True))
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        given = [values[name] for name in node.input]
        values[node.output[0]] = OPERATORS[node.op_type](kernels, attributes, *given)
    return values[model.graph.output[0].name]


@pytest.mark.parametrize("kernels", [ops, cpu], ids=["plain", "fast"])
def test_ops_give_the_outputs_of_onnx(kernels, oracle):
    oracle("onnx")
    run = []
    for name, model, inputs, expected in vectors():
        try:
            y = answer(kernels, model, inputs)
        except InexpressibleError:
            continue
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        run.append(name)
    assert len(set(run)) == EXPRESSIBLE, run
