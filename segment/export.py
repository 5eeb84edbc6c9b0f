"""A trained model as an ONNX file, for systems that know nothing of us: `python -m segment.export`.

The graph is the whole way from pixels to probabilities, so that nobody scales them wrongly: the
input `pixels` is (N, H, W, 3), 8-bit RGB, H and W divisible by 16; the output `probability` is
(N, H, W) float32. Threshold, pixel size and the rest are in the file's metadata_props.

Deepness, the plugin that runs networks inside QGIS, hands out squares of one size, bands first, as
floats from 0 to 1, and reads its settings from metadata_props of its own: a form for it differs in
its two ends and in these.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicnn.backend import Array
from minicnn.files import atomic_write
from minicnn.layers import ConvBlock
from minicnn.ops import EPS, Pad, pads
from segment.cli import add_model, check_folder, parser, run
from segment.errors import needed
from segment.model import MEAN, SCALE, Model, load_model
from segment.unet import UNet

WINDOW = 512  # pixels: the side of the squares that Deepness is to hand out
OPSET, IR_VERSION = 17, 8  # of 2022: what runtimes in the field can read


class Graph:
    """ONNX nodes and weights in the making; every method adds a node and returns its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def convolution(
        self, kind: str, x: str, w: Array, b: Array, stride: int = 1, pad: Pad = 0
    ) -> str:
        """Conv or ConvTranspose. Both want the side that x is on last but K x K: (F, C, K, K) and
        (C, F, K, K), which is the same transposition of (K, K, C, F) and of (K, K, F, C)."""
        (top, bottom), (left, right) = pads(pad)
        weights = self.constant(w.transpose(3, 2, 0, 1)), self.constant(b)
        sides = {"strides": [stride, stride], "pads": [top, left, bottom, right]}
        return self.add(kind, x, *weights, **sides)

    def block(self, x: str, block: ConvBlock) -> str:
        """relu(batch_norm(conv2d(x))), the normalisation folded into the weights."""
        p, s = block.params, block.state
        scale = p["gamma"] / np.sqrt(s["var"] + EPS)
        shift = (p["b"] - s["mean"]) * scale + p["beta"]
        return self.add("Relu", self.convolution("Conv", x, p["w"] * scale, shift, 1, block.pad))


def onnx_model(model: Model) -> Any:
    """The model as an onnx.ModelProto; it repeats `Model.predict`."""
    from onnx import TensorProto, helper

    graph = Graph()
    x = graph.add("Cast", "pixels", to=TensorProto.FLOAT)
    x = graph.add("Sub", x, graph.constant(np.array(MEAN, np.float32)))
    x = graph.add("Div", x, graph.constant(np.array(SCALE, np.float32)))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])  # (N, H, W, 3) -> (N, 3, H, W)
    x = _probabilities(graph, model.net, x)
    one = graph.constant(np.array([1]))
    graph.nodes.append(helper.make_node("Squeeze", [x, one], ["probability"]))  # -> (N, H, W)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", "H", "W", 3])
    found = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", "H", "W"])
    return _proto(model, graph, pixels, found, metadata(model))


def deepness_model(model: Model) -> Any:
    """The model as Deepness wants it: (N, 3, 512, 512) from 0 to 1 -> (N, 1, 512, 512)."""
    from onnx import TensorProto, helper

    graph = Graph()
    x = graph.add("Mul", "pixels", graph.constant(np.array(255, np.float32)))
    x = graph.add("Sub", x, graph.constant(np.array(MEAN, np.float32)))
    x = graph.add("Div", x, graph.constant(np.array(SCALE, np.float32)))
    x = _probabilities(graph, model.net, x)
    graph.nodes.append(helper.make_node("Identity", [x], ["probability"]))
    sides = [WINDOW, WINDOW]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, *sides])
    found = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 1, *sides])
    return _proto(model, graph, pixels, found, deepness_metadata(model))


def _probabilities(graph: Graph, net: UNet, x: str) -> str:
    """What `UNet.predict` does, and a sigmoid: (N, 3, H, W) -> (N, 1, H, W)."""
    skips = []
    for level, blocks in enumerate(net.encoder):
        if level > 0:
            skips.append(x)
            x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        for block in blocks:
            x = graph.block(x, block)
    for up, blocks in reversed(list(zip(net.ups, net.decoder, strict=True))):
        w, b = up.params["w"], up.params["b"]
        x = graph.convolution("ConvTranspose", x, w, b, up.stride, up.crop)
        x = graph.add("Concat", x, skips.pop(), axis=1)
        for block in blocks:
            x = graph.block(x, block)
    x = graph.convolution("Conv", x, net.head.params["w"], net.head.params["b"])
    return graph.add("Sigmoid", x)


def _proto(model: Model, graph: Graph, pixels: Any, found: Any, about: dict[str, str]) -> Any:
    from onnx import checker, helper

    made = helper.make_model(
        helper.make_graph(graph.nodes, "buildings", [pixels], [found], graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="minicnn",
        producer_version=model.info.version,
        doc_string=__doc__,
    )
    helper.set_model_props(made, about)
    checker.check_model(made, full_check=True)
    return made


def metadata(model: Model) -> dict[str, str]:
    """What a user of the file must know, as texts; what isn't known is left out."""
    info = model.info
    known = {
        "threshold": info.threshold,
        "outline_threshold": info.outline_threshold,
        "pixel_size": info.pixel_size,  # metres on the ground
        "multiple": model.net.multiple,  # of which H and W must be one
        "bands": info.reading.bands,
        "value_range": info.reading.value_range,  # what becomes 0 and 255
        "trained": info.trained,
    }
    return {name: json.dumps(value) for name, value in known.items() if value is not None}


def deepness_metadata(model: Model) -> dict[str, str]:
    """What Deepness reads, in its units: centimetres, percent, pixels. Its guide says `tiles_size`,
    its code `tile_size`."""
    info = model.info
    known = {
        "model_type": "Segmentor",
        "class_names": {"0": "background", "1": "building"},
        "resolution": info.pixel_size and round(100 * info.pixel_size, 2),
        "tile_size": WINDOW,
        "tiles_size": WINDOW,
        "tiles_overlap": 15,
        "seg_thresh": info.outline_threshold,  # it draws outlines of what it finds
    }
    return {name: json.dumps(value) for name, value in known.items() if value is not None}


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    needed("an export", "onnx")
    out = Path(options.out)
    check_folder(out.parent)
    make = {"onnx": onnx_model, "deepness": deepness_model}[options.format]
    made = make(load_model(options.model))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        temporary.write_bytes(made.SerializeToString())
    print(out)


def _parser() -> argparse.ArgumentParser:
    p = parser("export", "Write a model for other systems: from 8-bit RGB to probabilities.")
    add_model(p)
    p.add_argument(
        "--format",
        choices=("onnx", "deepness"),
        default="onnx",
        help="onnx: any size, bytes in; deepness: ONNX for the QGIS plugin Deepness; default: onnx",
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    return p


if __name__ == "__main__":
    run(main)
