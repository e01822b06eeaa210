"""Saving: only what changed changes, data files keep their layout, and a failure loses nothing."""

import errno
import os
import stat

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flamert as fr
from flamert.exporters import onnx as exporter
from tests.hostile.bricks import add_weight, floats, ints, model, nodes, value, write
from tests.hostile.nesting import field


def rich():
    """A model with everything a file can carry, and a field that this version of ONNX does not know."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(2, 3000)).astype(np.float32), "layer.0/w:0"),
        ints("shape", 2, 3000),
        helper.make_tensor("small", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("int4", TensorProto.INT4, [3], [-8, 7, 1]),
        helper.make_tensor("words", TensorProto.STRING, [2], ["a", "ü"]),
        numpy_helper.from_array(rng.normal(size=3000).astype(np.float16), "half"),
    ]
    weights[0].doc_string = "the weight"
    body = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((2, 3000), np.float32)), name="one"),
        helper.make_node("Add", ["x", "layer.0/w:0"], ["a"], name="add", doc_string="adds"),
        helper.make_node("twice", ["a"], ["t"], domain="f", name="call"),
        helper.make_node("Mul", ["t", "c"], ["y"], name="mul"),
    ]
    body[1].metadata_props.add(key="k", value="v")
    twice = helper.make_function("f", "twice", ["a"], ["b"], nodes(("Add", "a a", "b")), [helper.make_opsetid("", 21)])
    made = model(body, weights, inputs=[value("x", shape=("N", 3000))], functions=[twice], domains=["f"])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(floats("sparse", 5), ints("i", 1), [3]))
    made.graph.value_info.append(value("a", shape=("N", 3000)))
    made.doc_string, made.producer_name, made.model_version = "doc", "me", 7
    made.metadata_props.add(key="author", value="ü")
    return onnx.ModelProto.FromString(made.SerializeToString() + field(15, b"from the future"))


def parsed(path):
    return onnx.load(path, load_external_data=False)


def test_an_unchanged_model_is_saved_byte_for_byte(tmp_path):
    data = rich().SerializeToString()
    for source in (data, write(tmp_path, data)):
        fr.load(source, device="cpu").save(tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx").read_bytes() == data


CHANGES = {
    "layer.0/w:0": lambda a: a * 2,
    "shape": lambda a: a + 1,
    "small": lambda a: a - 1,
    "int4": lambda a: a[::-1],
    "words": lambda a: np.array(["b", "é"], object),
    "half": lambda a: -a,
    "sparse": lambda a: a + 1,
}


@pytest.mark.parametrize("name", CHANGES)
def test_only_the_changed_weight_changes(name, tmp_path):
    loaded = fr.load(rich(), device="cpu")
    loaded.params[name] = new = CHANGES[name](loaded.params[name])
    loaded.save(tmp_path / "out.onnx")
    before, after = rich(), parsed(tmp_path / "out.onnx")
    again = fr.load(tmp_path / "out.onnx", device="cpu")
    assert again.params[name].tolist() == new.tolist()
    assert again.params[name].dtype == new.dtype
    for proto in (before, after):
        for held in (proto.graph.initializer, proto.graph.sparse_initializer):
            for i in reversed(range(len(held))):
                if name in (getattr(held[i], "name", ""), getattr(getattr(held[i], "values", None), "name", "")):
                    if held is proto.graph.initializer and name != "sparse":
                        for f in exporter.DATA_FIELDS:
                            held[i].ClearField(f)
                    else:
                        del held[i]
    assert before == after


def test_what_is_saved_runs_elsewhere(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    proto = rich()
    for held in (proto.graph.initializer, proto.graph.sparse_initializer):
        for i in reversed(range(len(held))):
            if getattr(held[i], "name", "") not in ("layer.0/w:0", "shape"):
                del held[i]
    loaded = fr.load(proto, device="cpu")
    loaded.params["layer.0/w:0"] = loaded.params["layer.0/w:0"] * 3
    x = np.random.default_rng(1).normal(size=(2, 3000)).astype(np.float32)
    for external in ("auto", True, False):
        loaded.save(tmp_path / "out.onnx", external_data=external)
        theirs = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})
        np.testing.assert_allclose(loaded(x), theirs[0], 1e-6)


def test_nodes_keep_large_tensors_of_their_own(tmp_path):
    loaded = fr.load(rich(), device="cpu")
    loaded.save(tmp_path / "out.onnx")
    assert parsed(tmp_path / "out.onnx").graph.node[0] == rich().graph.node[0]


# -- data files


ARRAYS = {
    "a": np.arange(2000, dtype=np.float32),
    "b": np.arange(500, dtype=np.int64),
    "c": np.arange(7, dtype=np.float32),
}


def external(folder, name="model.onnx", location="w.bin", places=None):
    """A model whose weights lie in a data file at these offsets, with gaps that nobody owns filled with 0xEE."""
    places = places or {"a": 64, "b": 8192, "c": 12_200}
    data = bytearray(b"\xee" * 12_500)
    tensors = []
    for key, array in ARRAYS.items():
        t = TensorProto(name=key, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        t.data_location = TensorProto.EXTERNAL
        for k, v in (("location", location), ("offset", places[key]), ("length", array.nbytes), ("checksum", "0123")):
            t.external_data.add(key=k, value=str(v))
        data[places[key] : places[key] + array.nbytes] = array.tobytes()
        tensors.append(t)
    (folder / location).parent.mkdir(exist_ok=True, parents=True)
    (folder / location).write_bytes(data)
    made = model(nodes(("Add", "x c", "y")), tensors, inputs=[value("x", shape=(7,))])
    return write(folder, made, name)


def test_data_files_keep_their_layout(tmp_path):
    (tmp_path / "copy").mkdir()
    path = external(tmp_path, location="sub/w.bin")
    loaded = fr.load(path, device="cpu")
    loaded.save(tmp_path / "copy" / "model.onnx")
    assert (tmp_path / "copy" / "model.onnx").read_bytes() == path.read_bytes()
    assert (tmp_path / "copy" / "sub" / "w.bin").read_bytes() == (tmp_path / "sub" / "w.bin").read_bytes()
    assert sorted(os.listdir(tmp_path / "copy")) == ["model.onnx", "sub"]


def test_a_changed_weight_is_patched_in_its_place(tmp_path):
    path = external(tmp_path)
    old = (tmp_path / "w.bin").read_bytes()
    loaded = fr.load(path, device="cpu")
    loaded.params["b"] = ARRAYS["b"] + 1
    loaded.save(path)
    new = (tmp_path / "w.bin").read_bytes()
    assert new == old[:8192] + (ARRAYS["b"] + 1).tobytes() + old[8192 + ARRAYS["b"].nbytes :]
    assert "checksum" not in str(parsed(path))
    # The old file is still mapped by the model that was loaded from it.
    np.testing.assert_array_equal(loaded.params["a"], ARRAYS["a"])
    np.testing.assert_array_equal(fr.load(path, device="cpu").params["b"], ARRAYS["b"] + 1)


def test_weights_that_share_bytes_part_when_one_changes(tmp_path):
    path = external(tmp_path, places={"a": 0, "b": 8192, "c": 0})
    loaded = fr.load(path, device="cpu")
    loaded.params["c"] = ARRAYS["c"] + 1
    loaded.save(path)
    again = fr.load(path, device="cpu")
    np.testing.assert_array_equal(again.params["c"], ARRAYS["c"] + 1)
    np.testing.assert_array_equal(again.params["a"][7:], ARRAYS["a"][7:])
    np.testing.assert_array_equal(again.params["a"], loaded.params["a"])


def test_a_copy_under_another_name_leaves_the_original_whole(tmp_path):
    path = external(tmp_path)
    before = path.read_bytes(), (tmp_path / "w.bin").read_bytes()
    loaded = fr.load(path, device="cpu")
    loaded.params["a"] = ARRAYS["a"] * 2
    loaded.save(tmp_path / "tuned.onnx")
    assert (path.read_bytes(), (tmp_path / "w.bin").read_bytes()) == before
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "tuned.onnx", "tuned.onnx.data", "w.bin"]
    again = fr.load(tmp_path / "tuned.onnx", device="cpu")
    np.testing.assert_array_equal(again.params["a"], ARRAYS["a"] * 2)
    np.testing.assert_array_equal(again.params["b"], ARRAYS["b"])
    loaded = onnx.load(tmp_path / "tuned.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), ARRAYS["a"] * 2)


def test_external_data_can_be_moved_in_and_out(tmp_path):
    loaded = fr.load(external(tmp_path), device="cpu")
    loaded.save(tmp_path / "in.onnx", external_data=False)
    assert not (tmp_path / "in.onnx.data").exists()
    inside = fr.load((tmp_path / "in.onnx").read_bytes(), device="cpu")
    inside.save(tmp_path / "out.onnx", external_data=True)
    assert len((tmp_path / "out.onnx").read_bytes()) < 1000
    outside = fr.load(tmp_path / "out.onnx", device="cpu")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(inside.params[name], array)
        np.testing.assert_array_equal(outside.params[name], array)


def test_what_passes_two_gibibytes_goes_to_a_data_file(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "MAX_PROTO", 30_000)
    loaded = fr.load(rich(), device="cpu")
    loaded.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size > 24_000
    again = fr.load(tmp_path / "out.onnx", device="cpu")
    np.testing.assert_array_equal(again.params["layer.0/w:0"], loaded.params["layer.0/w:0"])
    with pytest.raises(fr.errors.InputError, match="2 GiB"):
        loaded.save(tmp_path / "no.onnx", external_data=False)
    assert not (tmp_path / "no.onnx").exists()


# -- what can go wrong


def old_and_new(folder):
    """A saved file, its bytes, and a model to save over it."""
    path = write(folder, rich())
    loaded = fr.load(path, device="cpu")
    loaded.params["shape"] = np.array([1, 1])
    return path, path.read_bytes(), loaded


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_loses_nothing(fails, tmp_path, monkeypatch):
    path, before, loaded = old_and_new(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(fr.errors.CheckpointError, match="No space left"):
        loaded.save(path, external_data=True)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_limit_on_file_size_loses_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    path, before, loaded = old_and_new(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(fr.errors.CheckpointError, match="cannot write"):
            loaded.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_folders_that_cannot_be_written_are_named(tmp_path):
    _, _, loaded = old_and_new(tmp_path)
    with pytest.raises(fr.errors.CheckpointError, match="nowhere"):
        loaded.save(tmp_path / "nowhere" / "model.onnx")
    (tmp_path / "locked").mkdir(mode=0o500)
    if not os.access(tmp_path / "locked", os.W_OK):
        with pytest.raises(fr.errors.CheckpointError, match="ermission"):
            loaded.save(tmp_path / "locked" / "model.onnx")


def test_links_in_the_way_are_refused(tmp_path):
    path, before, loaded = old_and_new(tmp_path)
    (tmp_path / "link.onnx").symlink_to(path)
    with pytest.raises(fr.errors.UnsafeModel, match="symbolic link"):
        loaded.save(tmp_path / "link.onnx")
    (tmp_path / "to.onnx.data").symlink_to(path)
    with pytest.raises(fr.errors.UnsafeModel, match="symbolic link"):
        loaded.save(tmp_path / "to.onnx", external_data=True)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(fr.errors.UnsafeModel, match="regular"):
        loaded.save(tmp_path / "pipe.onnx")
    assert path.read_bytes() == before


def test_data_files_never_leave_the_folder(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "to").mkdir()
    loaded = fr.load(external(tmp_path / "from", location="sub/w.bin"), device="cpu")
    (tmp_path / "to" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(fr.errors.UnsafeModel, match="outside"):
        loaded.save(tmp_path / "to" / "model.onnx")
    assert os.listdir(tmp_path / "outside") == []
    assert os.listdir(tmp_path / "to") == ["sub"]


def test_permissions_stay(tmp_path):
    path, _, loaded = old_and_new(tmp_path)
    path.chmod(0o640)
    loaded.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    loaded.save(tmp_path / "new.onnx")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "new.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_other_values_of_external_data_are_refused(tmp_path):
    loaded = fr.load(add_weight(raw_data=bytes(8)), device="cpu")
    with pytest.raises(fr.errors.InputError, match="auto"):
        loaded.save(tmp_path / "out.onnx", external_data="maybe")
