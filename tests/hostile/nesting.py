"""Functions that call themselves or explode, and graphs inside graphs."""

import numpy as np
from onnx import helper, numpy_helper

from tests.hostile.bricks import hostile, legal, model, nodes, value, write


def function(name, body, domain="f"):
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    return helper.make_function(domain, name, ["a"], ["b"], body, imports)


def call(name, inputs="a", outputs="b"):
    return helper.make_node(name, inputs.split(), outputs.split(), domain="f")


@hostile
def function_recursive(folder):
    made = [function("loop", [call("loop")])]
    return write(folder, model([call("loop", "x", "y")], functions=made, domains=["f"]))


@hostile
def function_recursive_through_another(folder):
    made = [function("ping", [call("pong")]), function("pong", [call("ping")])]
    return write(folder, model([call("ping", "x", "y")], functions=made, domains=["f"]))


@hostile
def function_recursive_in_branch(folder):
    inner = helper.make_graph([call("loop", "a", "z")], "b", [], [value("z", shape=None)])
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    body = [condition, helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=inner)]
    return write(folder, model([call("loop", "x", "y")], functions=[function("loop", body)], domains=["f"]))


@hostile
def function_bomb(folder):
    made = [function("f0", nodes(("Relu", "a", "b")))]
    made += [function(f"f{i}", [call(f"f{i - 1}", "a", "m"), call(f"f{i - 1}", "m", "b")]) for i in range(1, 29)]
    return write(folder, model([call("f28", "x", "y")], functions=made, domains=["f"]))


@hostile
def function_chain(folder):
    made = [function("f0", nodes(("Relu", "a", "b")))]
    made += [function(f"f{i}", [call(f"f{i - 1}")]) for i in range(1, 20_000)]
    return write(folder, model([call("f19999", "x", "y")], functions=made, domains=["f"]))


@hostile
def function_twice(folder):
    made = [function("same", nodes(("Relu", "a", "b")))] * 2
    return write(folder, model([call("same", "x", "y")], functions=made, domains=["f"]))


@hostile
def function_reads_outside(folder):
    made = [function("peek", nodes(("Add", "a x", "b")))]
    return write(folder, model([call("peek", "x", "y")], functions=made, domains=["f"]))


def nested_ifs(depth):
    """The bytes of a model with `depth` branches inside one another, made inside out: no proto of that depth is ever built."""
    inner = helper.make_graph(nodes(("Relu", "x", "z0")), "b", [], [value("z0", shape=None)]).SerializeToString()
    for i in range(1, depth + 1):
        other = helper.make_graph(nodes(("Neg", "x", f"e{i}")), "e", [], [value(f"e{i}", shape=None)])
        branches = field(5, field(1, b"then_branch") + field(6, inner) + b"\xa0\x01\x05")
        branches += field(5, helper.make_attribute("else_branch", other).SerializeToString())
        node = field(1, b"c") + field(2, f"z{i}".encode()) + field(4, b"If") + branches
        inner = field(1, node) + field(2, b"b") + field(12, value(f"z{i}", shape=None).SerializeToString())
    outer = model([], [numpy_helper.from_array(np.array(True), "c")], outputs=[value(f"z{depth}", shape=None)])
    return outer.SerializeToString() + field(7, field(1, node))


def field(number, content):
    """A length-delimited protobuf field."""
    out, length = bytearray([number << 3 | 2]), len(content)
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(out) + bytes([length]) + content


@hostile
def nesting_of_thousands(folder):
    return write(folder, nested_ifs(2000))


@legal
def nesting_of_twenty_five(folder):
    return write(folder, nested_ifs(25))
