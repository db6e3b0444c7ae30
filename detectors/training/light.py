"""Step graphs without their weights, to be measured: a few kilobytes that cost what the whole graph costs.

Weights of products become one number in a shape. A runtime writes them out when it loads the graph (constants are
folded), packs them like any other, and multiplies as it would: time does not depend on values.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEWEST = 64
"""Numbers of a tensor that is worth it."""
PRODUCTS = ("Gemm", "MatMul", "Conv", "ConvTranspose")
VALUE = 1 / 64
"""Small enough that nothing overflows; neither 0 nor 1, which a runtime might leave out."""


def light_graph(graph: bytes) -> bytes:
    """The same operations on the same shapes, with weights that say nothing.

    Args:
        graph: A step graph.
    """
    model = onnx.load_from_string(graph)
    weights = {name for node in model.graph.node if node.op_type in PRODUCTS for name in node.input[1:]}
    kept, shapes, nodes = [], [], []
    for tensor in model.graph.initializer:
        if tensor.name in weights and tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= FEWEST:
            shape = f"{tensor.name}.shape"
            shapes.append(numpy_helper.from_array(np.array(tensor.dims, np.int64), shape))
            value = numpy_helper.from_array(np.array([VALUE], np.float32))
            nodes.append(helper.make_node("ConstantOfShape", [shape], [tensor.name], value=value))
        else:
            kept.append(tensor)
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *shapes])
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
