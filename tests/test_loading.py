"""Reading models: every source, every element type, external data, and what becomes of large tensors."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flamert as fr
from flamert.importers import check, wire
from flamert.importers.onnx import OnnxGraph
from flamert.importers.tensors import DTYPES, inline_tensor, pack, unpack
from tests.hostile import LEGAL
from tests.hostile.bricks import INT64, add_weight, floats, ints, model, nodes, value, write

DTYPE_NUMBERS = [n for n, d in DTYPES.items() if not d.hasobject]


def large(n=5000, seed=0):
    """y = x + w with a weight that is cut out of the file, and one in a Constant."""
    rng = np.random.default_rng(seed)
    w = numpy_helper.from_array(rng.normal(size=n).astype(np.float32), "w")
    c = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(rng.normal(size=n).astype(np.float32)))
    return model([c, *nodes(("Add", "x w", "a"), ("Mul", "a c", "y"))], [w], inputs=[value("x", shape=(n,))])


def weights_of(proto):
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


# -- sources


@pytest.mark.parametrize("source", ["path", "Path", "bytes", "bytearray", "memoryview", "proto", "ir"])
def test_every_source_gives_the_same(source, tmp_path):
    proto = large()
    path = write(tmp_path, proto)
    data = path.read_bytes()
    given = {
        "path": str(path),
        "Path": path,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "proto": proto,
    }
    loaded = fr.load(given[source] if source in given else pytest.importorskip("onnx_ir").from_proto(proto), device="cpu")
    w, c = numpy_helper.to_array(proto.graph.initializer[0]), numpy_helper.to_array(proto.graph.node[0].attribute[0].t)
    x = np.linspace(-1, 1, w.size, dtype=np.float32)
    np.testing.assert_array_equal(loaded(x), (x + w) * c)


def test_a_proto_may_change_after_it_was_loaded():
    proto = large()
    before = weights_of(proto)["w"]
    loaded = fr.load(proto, device="cpu")
    proto.graph.initializer[0].raw_data = bytes(len(proto.graph.initializer[0].raw_data))
    np.testing.assert_array_equal(loaded.params["w"], before)


def test_a_file_may_change_after_it_was_loaded(tmp_path):
    proto = large()
    path = write(tmp_path, proto)
    loaded = fr.load(path, device="cpu")
    path.write_bytes(b"")
    np.testing.assert_array_equal(loaded.params["w"], weights_of(proto)["w"])


def test_other_sources_are_refused():
    with pytest.raises(fr.errors.InputError, match="path, bytes"):
        fr.load(3)


def test_messages_name_the_file(tmp_path):
    path = write(tmp_path, b"no model")
    with pytest.raises(fr.errors.InvalidModel, match=r"model\.onnx"):
        fr.load(path)


def test_new_versions_are_told_the_newest_supported():
    with pytest.raises(fr.errors.UnsupportedOp, match=str(check.NEWEST_OPSET[""])):
        fr.load(model(nodes(("Relu", "x", "y")), opset=100))
    with pytest.raises(fr.errors.UnsupportedOp, match=str(check.NEWEST_IR)):
        fr.load(model(nodes(("Relu", "x", "y")), ir=100))


def test_supported_versions_reach_those_of_the_installed_onnx():
    assert check.NEWEST_IR >= onnx.IR_VERSION or onnx.IR_VERSION > 14
    for domain, newest in check.NEWEST_OPSET.items():
        known = [s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain]
        assert newest >= max(known, default=1)


# -- tensors


@pytest.mark.parametrize("number", DTYPE_NUMBERS, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("size", [0, 1, 5, 12_289], ids=str)
def test_every_element_type_is_read_and_written(number, size):
    dtype = DTYPES[number]
    rng = np.random.default_rng(size)
    proto = TensorProto(name="w", data_type=number, dims=[size])
    bits = 8 * dtype.itemsize if dtype.itemsize > 1 else inline_bits(number)
    proto.raw_data = rng.bytes(-(-size * bits // 8))
    if number == TensorProto.BOOL:
        proto.raw_data = bytes(b & 1 for b in proto.raw_data)
    if bits < 8 and size % 2:
        proto.raw_data = proto.raw_data[:-1] + bytes([proto.raw_data[-1] & ((1 << (size * bits - 1) % 8 + 1) - 1)])
    ours, theirs = inline_tensor(proto), numpy_helper.to_array(proto)
    assert ours.dtype == dtype
    assert ours.tobytes() == theirs.astype(dtype).tobytes()
    assert pack(ours).tobytes() == proto.raw_data
    assert unpack(pack(ours), dtype, size).tobytes() == ours.tobytes()
    loaded = fr.load(model(nodes(("Identity", "x", "y")), [proto]), device="cpu").params["w"]
    assert loaded.tobytes() == ours.tobytes()
    assert loaded.flags.aligned
    assert not loaded.flags.writeable


def inline_bits(number):
    name = TensorProto.DataType.Name(number)
    if name.startswith("FLOAT6"):
        return 6
    return 4 if name in ("INT4", "UINT4", "FLOAT4E2M1") else 2 if name in ("INT2", "UINT2") else 8


@pytest.mark.parametrize(
    ("number", "values"),
    [
        (TensorProto.FLOAT, [1.5, -2]),
        (TensorProto.DOUBLE, [1.5, -2]),
        (TensorProto.INT32, [1, -2]),
        (TensorProto.INT64, [1 << 40, -2]),
        (TensorProto.UINT64, [1 << 63, 2]),
        (TensorProto.UINT32, [1 << 31, 2]),
        (TensorProto.INT8, [-1, 2]),
        (TensorProto.BOOL, [True, False]),
        (TensorProto.FLOAT16, [1.5, -2]),
        (TensorProto.BFLOAT16, [1.5, -2]),
        (TensorProto.FLOAT8E4M3FN, [1.5, -2]),
        (TensorProto.COMPLEX64, [1 + 2j, -2]),
        (TensorProto.INT4, [-8, 7]),
        (TensorProto.STRING, ["a", "ü"]),
    ],
)
def test_typed_fields_are_read(number, values):
    tensor = helper.make_tensor("w", number, [2], values)
    loaded = fr.load(model(nodes(("Identity", "x", "y")), [tensor]), device="cpu").params["w"]
    assert loaded.tolist() == values


def test_bools_are_zero_or_one():
    tensor = TensorProto(name="w", data_type=TensorProto.BOOL, dims=[3], raw_data=b"\x00\x02\xff")
    assert inline_tensor(tensor).view(np.uint8).tolist() == [0, 1, 1]


def test_sparse_initializers_are_written_out():
    for indices in (np.array([1, 5]), np.array([[0, 1], [1, 2]])):
        made = helper.make_sparse_tensor(floats("w", 3, 4), numpy_helper.from_array(indices, "i"), [2, 3])
        proto = model(nodes(("Identity", "x", "y")))
        proto.graph.sparse_initializer.append(made)
        assert fr.load(proto, device="cpu").params["w"].tolist() == [[0, 3, 0], [0, 0, 4]]


def test_params_list_floats_and_integers_by_the_names_in_the_file():
    proto = model(nodes(("Identity", "x", "y")), [floats("layer.0/weight:0", 1), ints("shape", 2, 3)])
    loaded = fr.load(proto, device="cpu")
    assert list(loaded.params) == ["layer.0/weight:0", "shape"]
    loaded.params["shape"] = np.array([4, 5])
    assert loaded.params["shape"].tolist() == [4, 5]


# -- large tensors, cut out of the file


def test_cutting_and_filling_gives_the_same_bytes():
    data = large().SerializeToString()
    proto, tickets = wire.cut(memoryview(data))
    assert len(tickets.cut) == 2
    assert len(proto.SerializeToString()) < 1000

    def swap(raw):
        return None if (n := tickets.number(raw)) is None else tickets.cut[n]

    pieces = wire.rewrite(memoryview(proto.SerializeToString()), onnx.ModelProto.DESCRIPTOR, swap, wire.Tickets.SIZE)
    assert b"".join(pieces) == data


def test_cutting_follows_protobufs_rules_for_repeated_fields():
    first, second = large(seed=1).SerializeToString(), large(seed=2).SerializeToString()
    merged = onnx.ModelProto.FromString(first + second)
    proto, tickets = wire.cut(memoryview(first + second))
    assert len(tickets.cut) == 4
    for ours, theirs in zip(proto.graph.initializer, merged.graph.initializer, strict=True):
        assert tickets.cut[tickets.number(ours.raw_data)] == theirs.raw_data


@pytest.mark.parametrize("at", range(0, 60, 3))
def test_cutting_leaves_broken_bytes_to_protobuf(at):
    data = bytearray(large().SerializeToString())
    data[-at - 1] ^= 0x55
    data = bytes(data)
    try:
        theirs = onnx.ModelProto.FromString(data)
    except Exception:
        with pytest.raises(Exception, match="pars"):
            wire.cut(memoryview(data))
        return
    proto, tickets = wire.cut(memoryview(data))
    raws = [t.raw_data for t in proto.graph.initializer]
    assert [tickets.cut[tickets.number(r)] if tickets.number(r) is not None else r for r in raws] == [
        t.raw_data for t in theirs.graph.initializer
    ]


def test_a_ticket_cannot_be_guessed():
    proto = model(nodes(("Identity", "x", "y")), [floats("w", *range(6))])
    assert fr.load(proto, device="cpu").params["w"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_weights_are_held_once(tmp_path):
    n = 24 << 20
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[n], raw_data=bytes(4 * n))
    path = write(tmp_path, model(nodes(("Identity", "x", "y")), [w]))
    code = f"""
import flamert as fr, flamert.importers
def anonymous():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = anonymous(); model = fr.load({str(path)!r}, device="cpu"); print(anonymous() - before)
"""
    root = Path(__file__).parent.parent
    grown = int(subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout)
    assert grown < 1.3 * (4 * n >> 20)


# -- external data


def with_data(folder, offset=0):
    """A saved model whose two weights lie in w.bin, and their values."""
    a, b = np.arange(2000, dtype=np.float32), np.arange(2000, dtype=np.float32) * 2
    tensors = []
    at = offset
    for name, array in (("a", a), ("b", b)):
        t = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, text in (("location", "w.bin"), ("offset", str(at)), ("length", str(array.nbytes))):
            t.external_data.add(key=key, value=text)
        tensors.append(t)
        at += array.nbytes
    (folder / "w.bin").write_bytes(bytes(offset) + a.tobytes() + b.tobytes())
    made = nodes(("Add", "x a", "t"), ("Mul", "t b", "y"))
    return write(folder, model(made, tensors, inputs=[value("x", shape=(2000,))])), a, b


@pytest.mark.parametrize("offset", [0, 3, 4096])
def test_external_data_is_mapped_and_aligned(offset, tmp_path):
    path, a, b = with_data(tmp_path, offset)
    loaded = fr.load(path, device="cpu")
    assert all(p.flags.aligned for p in loaded.params.values())
    x = np.ones(2000, np.float32)
    np.testing.assert_array_equal(loaded(x), (x + a) * b)


@pytest.mark.parametrize("name", ["cache_of_links", "cache_of_hard_links", "external_through_inner_link"])
def test_caches_load(name, tmp_path):
    assert fr.load(LEGAL[name](tmp_path), device="cpu").params["w"].tolist() == [0, 0]


def test_a_relative_path_and_a_linked_folder_load(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    with_data(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "link")
    assert len(fr.load("model.onnx", device="cpu").params) == 2
    assert len(fr.load(tmp_path / "link" / "model.onnx", device="cpu").params) == 2


# -- structure


def test_unsorted_nodes_are_sorted_and_sorted_ones_left_alone():
    proto = model(nodes(("Relu", "b", "y"), ("Neg", "a", "b"), ("Abs", "x", "a")))
    loaded = fr.load(proto, device="cpu")
    assert [n.op_type for n in loaded.origin.graph.nodes] == ["Abs", "Neg", "Relu"]
    assert loaded(np.array([-3, 2], np.float32)).tolist() == [0, 0]
    graph = fr.load(model(nodes(("Abs", "x", "a"), ("Neg", "x", "b"), ("Add", "a b", "y"))), device="cpu").origin.graph
    assert check.ordered(graph) is graph.nodes


def test_expansion_counts_what_inlining_would_make():
    body = nodes(("Relu", "a", "t"), ("Neg", "t", "b"))
    inner = helper.make_function("f", "two", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    calls = [helper.make_node("two", [a], [b], domain="f") for a, b in (("x", "m"), ("m", "y"))]
    origin = fr.load(model(calls, functions=[inner], domains=["f"]), device="cpu").origin
    assert check.expansion(origin.graph, origin.functions) == 6
    assert check.expansion(OnnxGraph([], [], [], {}), {}) == 0


def test_a_negative_declared_dimension_is_one_that_varies():
    loaded = fr.load(model(nodes(("Relu", "x", "y")), inputs=[value("x", shape=(-1, 2))]), device="cpu")
    assert loaded.inputs[0].shape == (None, 2)
    assert loaded(np.ones((5, 2), np.float32)).shape == (5, 2)


def test_ai_onnx_is_the_default_domain():
    proto = model([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")])
    assert fr.load(proto, device="cpu")(np.array([-1, 1], np.float32)).tolist() == [0, 1]


def test_memory_that_no_machine_has_is_not_asked_for():
    proto = model(nodes(("ConstantOfShape", "s", "y")), [ints("s", 1 << 44)])
    with pytest.raises(fr.errors.OutOfMemory, match="ConstantOfShape node 'y'"):
        fr.load(proto, device="cpu").run({"x": np.zeros(2, np.float32)})


def test_a_declared_type_that_is_wrong_names_both():
    proto = model(nodes(("Relu", "x", "y")), outputs=[value("y", INT64, (2,))])
    with pytest.raises(fr.errors.InvalidModel, match="int64, and is float32"):
        fr.load(proto, device="cpu")(np.zeros(2, np.float32))


def test_a_weight_may_be_fed_where_it_is_an_input_too():
    proto = add_weight(raw_data=np.array([1, 2], np.float32).tobytes())
    proto.graph.input.append(value("w"))
    loaded = fr.load(proto, device="cpu")
    zero = np.zeros(2, np.float32)
    assert loaded.run({"x": zero})["y"].tolist() == [1, 2]
    assert loaded.run({"x": zero, "w": zero})["y"].tolist() == [0, 0]
