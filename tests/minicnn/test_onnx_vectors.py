"""ONNX's own node vectors as an oracle: inputs and outputs that its makers ship for each operator.

Only what the ops can express is run: 2-D images, square windows, no groups, no dilation. How many
vectors that are is asserted, so that none is lost in silence.
"""

import warnings
from functools import cache

import numpy as np
import pytest

from minicnn import losses, ops
from minicnn.kernels import cpu
from minicnn.ops import Statistics

EXPRESSIBLE = 13


class InexpressibleError(Exception):
    """What the ops have no word for."""


def need(condition):
    if not condition:
        raise InexpressibleError


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def square(attributes, x, w, transposed=False):
    """Stride and pads of a convolution, as the ops take them."""
    need(x.ndim == 4 and attributes.get("group", 1) == 1 and w.shape[2] == w.shape[3])
    need(set(attributes.get("dilations", [1])) == {1})
    strides = attributes.get("strides", [1, 1])
    need(strides[0] == strides[1] and "output_shape" not in attributes)
    need(attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID"))
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    more = attributes.get("output_padding", [0, 0]) if transposed else [0, 0]
    pads = (top, bottom - more[0]), (left, right - more[1])
    need(min(*pads[0], *pads[1]) >= 0)
    return strides[0], pads


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


@cache
def vectors():
    """Every vector of those operators: name, operator, attributes, inputs, first output."""
    from onnx import helper
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():  # numbers that overflow on purpose, of other operators
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found = []
    for case in cases:
        nodes = case.model.graph.node if case.model else ()
        if len(nodes) != 1 or nodes[0].op_type not in OPERATORS or len(nodes[0].output) > 3:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in nodes[0].attribute}
        for inputs, outputs in case.data_sets or ():
            found.append((case.name, nodes[0].op_type, attributes, inputs, outputs[0]))
    return found


@pytest.mark.parametrize("kernels", [ops, cpu], ids=["plain", "fast"])
def test_ops_give_the_outputs_of_onnx(kernels, oracle):
    oracle("onnx")
    run = []
    for name, operator, attributes, inputs, expected in vectors():
        try:
            y = OPERATORS[operator](kernels, attributes, *map(np.asarray, inputs))
        except InexpressibleError:
            continue
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        run.append(name)
    assert len(set(run)) == EXPRESSIBLE, run
