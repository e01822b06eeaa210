"""What the corpus is made of: the two registries, and short ways to write models, tensors and files."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

HOSTILE = {}
"""name → builder; loading and running must end in a FlamertError."""

LEGAL = {}
"""name → builder; loading and running must succeed."""

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def hostile(build):
    HOSTILE[build.__name__] = build
    return build


def legal(build):
    LEGAL[build.__name__] = build
    return build


def value(name, dtype=FLOAT, shape=(2,)):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, initializers=(), inputs=None, outputs=None, functions=(), opset=21, ir=10, domains=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x")] if inputs is None else inputs,
        [value("y", shape=None)] if outputs is None else outputs,
        list(initializers),
    )
    imports = [helper.make_opsetid("", opset), *[helper.make_opsetid(d, 1) for d in domains]]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(functions))


def write(folder, proto, name="model.onnx"):
    path = folder / name
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


def add_weight(**fields):
    """y = x + w, with the fields of w as given."""
    w = TensorProto(name="w", data_type=FLOAT, dims=[2])
    for field, content in fields.items():
        if isinstance(content, list):
            w.ClearField(field)
            getattr(w, field).extend(content)
        else:
            setattr(w, field, content)
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [w])


def nodes(*described):
    """Nodes from ("Op", inputs, outputs, attributes) rows."""
    return [helper.make_node(op, i.split(), o.split(), **(a[0] if a else {})) for op, i, o, *a in described]


def ints(name, *numbers):
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def floats(name, *numbers):
    return numpy_helper.from_array(np.array(numbers, np.float32), name)
