"""Step graphs without their weights, to be measured: a few kilobytes that cost what the whole graph costs.

Weights of products become one number in a shape. A runtime writes them out when it loads the graph (constants are
folded), packs them like any other, and multiplies as it would: time does not depend on values. What is added and
multiplied becomes that number too, so that detectors of the same shape have the same graphs, to the byte: whatever
they learned, and whenever they are drawn.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEWEST = 64
"""Numbers of a tensor that is shorter as a shape."""
PRODUCTS = ("Gemm", "MatMul", "Conv", "ConvTranspose")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Max")
FACTORS = ("alpha", "beta")
VALUE = 1 / 64
"""Small enough that nothing overflows, and neither 0 nor 1, which a runtime might leave out.

Each tensor has a little more than the one before, since a runtime computes once what is there twice."""


def light_graph(graph: bytes) -> bytes:
    """The same operations on the same shapes, with weights that say nothing.

    Args:
        graph: A step graph.
    """
    model = onnx.load_from_string(graph)
    learned = {
        name
        for node in model.graph.node
        if node.op_type in PRODUCTS + ELEMENTWISE
        for name in (node.input[1:] if node.op_type in PRODUCTS else node.input)
    }
    learned -= {name for node in model.graph.node if node.op_type not in PRODUCTS + ELEMENTWISE for name in node.input}
    kept, shapes, nodes = [], [], []
    for place, tensor in enumerate(model.graph.initializer):
        value = VALUE * (1 + place / len(model.graph.initializer))
        if tensor.name not in learned or tensor.data_type != TensorProto.FLOAT:
            kept.append(tensor)
        elif np.prod(tensor.dims) < FEWEST:
            kept.append(numpy_helper.from_array(np.full(tuple(tensor.dims), value, np.float32), tensor.name))
        else:
            shape = f"{tensor.name}.shape"
            shapes.append(numpy_helper.from_array(np.array(tensor.dims, np.int64), shape))
            filled = numpy_helper.from_array(np.array([value], np.float32))
            nodes.append(helper.make_node("ConstantOfShape", [shape], [tensor.name], value=filled))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Gemm" and attribute.name in FACTORS and attribute.f not in (0.0, 1.0):
                attribute.f = VALUE  # a number that was learned, folded into the product
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *shapes])
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
