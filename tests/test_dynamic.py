"""Models whose shapes, branches and turns depend on data: control flow, sequences, optionals, strings, host steps."""

import numpy as np
import onnx
import pytest

import flamert as fr
from flamert import limits
from flamert.errors import FlamertError, InvalidModel, OutOfMemory, ShapeError, UnsafeModel
from flamert.importers import loops, registry

f32 = np.float32


def model(text, opset=18, functions=""):
    """A model from ONNX's text format."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "local" : 1]>\n'
    return onnx.parser.parse_model(header + text + functions)


def run(proto, **feeds):
    """Outputs of a model, run three times so that later calls meet what earlier ones built."""
    loaded = fr.load(proto, device="cpu")
    for _ in range(2):
        loaded.run(feeds)
    results = list(loaded.run(feeds).values())
    return results[0] if len(results) == 1 else results


def same(got, want):
    if isinstance(want, list):
        assert isinstance(got, list) and len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            same(g, w)
    else:
        want = np.asarray(want)
        assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, got.shape, want.dtype, want.shape)
        np.testing.assert_allclose(got, want, rtol=1e-5) if got.dtype.kind == "f" else np.testing.assert_array_equal(got, want)


def agrees_with_onnxruntime(proto, **feeds):
    """Outputs of a model; the same as onnxruntime's, where that is installed."""
    got = list(fr.load(proto, device="cpu").run(feeds).values())
    try:
        import onnxruntime as ort
    except ImportError:
        return got
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    want = session.run(None, {name: np.asarray(x) for name, x in feeds.items()})
    for g, w in zip(got, want, strict=True):
        same(g, w)
    return got


# -- If ---------------------------------------------------------------------------------------------------------------

BRANCHES = """
main (float[N] x, bool c) => (float[M] y) {
    y = If (c) <
        then_branch = then () => (float[N] a) { a = Add(x, x) },
        else_branch = otherwise () => (float[K] b) { b = Concat <axis = 0> (x, x) }
    >
}"""


@pytest.mark.parametrize("condition", [True, False])
def test_branches_may_differ_in_shape(condition):
    x = np.arange(3, dtype=f32)
    want = x + x if condition else np.concatenate([x, x])
    same(run(model(BRANCHES), x=x, c=np.array(condition)), want)


def test_one_model_takes_both_branches_in_turn():
    loaded = fr.load(model(BRANCHES), device="cpu")
    x = np.arange(3, dtype=f32)
    for condition in (True, False, True, False):
        assert loaded.run({"x": x, "c": np.array(condition)})["y"].shape == ((3,) if condition else (6,))


def test_a_known_condition_makes_a_static_model():
    text = """
    main (float[N] x) => (float[N] y) {
        n = Size(x)
        two = Constant <value_int = 2> ()
        c = Greater(n, two)
        y = If (c) <
            then_branch = then () => (float[N] a) { a = Add(x, x) },
            else_branch = otherwise () => (float[N] b) { b = Sub(x, x) }
        >
        unused = NonZero(x)
    }"""
    same(run(model(text), x=np.ones(3, f32)), np.full(3, 2, f32))
    same(run(model(text), x=np.ones(2, f32)), np.zeros(2, f32))


def test_branches_nested_and_capturing():
    text = """
    main (float[N] x, bool c, bool d) => (float[N] y) {
        w = Exp(x)
        y = If (c) <
            then_branch = t () => (float[N] a) {
                v = Mul(w, x)
                a = If (d) <
                    then_branch = tt () => (float[N] p) { p = Add(v, w) },
                    else_branch = te () => (float[N] q) { q = Identity(v) }
                >
            },
            else_branch = e () => (float[N] b) { b = Identity(x) }
        >
    }"""
    x = np.linspace(0, 1, 4, dtype=f32)
    for c in (False, True):
        for d in (False, True):
            (got,) = agrees_with_onnxruntime(model(text), x=x, c=np.array(c), d=np.array(d))
            same(got, (np.exp(x) * x + (np.exp(x) if d else 0)) if c else x)


def test_a_condition_computed_from_data():
    text = """
    main (float[N] x) => (float[N] y) {
        s = ReduceSum <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        c = Less(s, zero)
        y = If (c) <
            then_branch = t () => (float[N] a) { a = Neg(x) },
            else_branch = e () => (float[N] b) { b = Identity(x) }
        >
    }"""
    for x in (np.array([1, -3], f32), np.array([1, 3], f32)):
        same(agrees_with_onnxruntime(model(text), x=x)[0], x if x.sum() >= 0 else -x)


# -- Loop -------------------------------------------------------------------------------------------------------------

POWERS = """
main (int64 n, float[2] x) => (float[2] final, float[T,2] all) {
    true = Constant <value = bool {1}> ()
    final, all = Loop (n, true, x) <
        body = b (int64 i, bool c, float[2] s) => (bool c2, float[2] s2, float[2] out) {
            c2 = Identity(c)
            s2 = Add(s, x)
            out = Mul(s2, s2)
        }
    >
}"""


@pytest.mark.parametrize("turns", [0, 1, 5])
def test_a_loop_with_a_turn_count_from_data(turns):
    x = np.array([1, 2], f32)
    final, every = agrees_with_onnxruntime(model(POWERS), n=np.array(turns), x=x)
    same(final, x * (turns + 1))
    same(every, np.array([(x * (i + 2)) ** 2 for i in range(turns)], f32).reshape(turns, 2))


def constant_turns(turns):
    head = f"main (float[2] x) => (float[2] final, float[T,2] all) {{ n = Constant <value_int = {turns}> ()"
    return model(POWERS.replace("main (int64 n, float[2] x) => (float[2] final, float[T,2] all) {", head))


@pytest.mark.parametrize("turns", [0, 1, 7])
def test_a_loop_with_a_known_turn_count_is_one_plan(turns):
    loaded = fr.load(constant_turns(turns), device="cpu")
    x = np.array([1, 2], f32)
    results = loaded.run({"x": x})
    same(results["final"], x * (turns + 1))
    same(results["all"], np.array([(x * (i + 2)) ** 2 for i in range(turns)], f32).reshape(turns, 2))
    assert all(program.static for program, _ in loaded._programs.values())


def test_unrolled_and_hosted_loops_agree(monkeypatch):
    x = np.array([1, 2], f32)
    unrolled = run(constant_turns(9), x=x)
    monkeypatch.setattr(registry, "UNROLL_NODES", 0)
    same(run(constant_turns(9), x=x), unrolled)


def test_a_while_loop_stops_by_its_condition():
    text = """
    main (float x, float limit) => (float y, int64 turns) {
        empty = Constant <value_int = 0> ()
        c = Less(x, limit)
        y, turns = Loop ("", c, x, empty) <
            body = b (int64 i, bool c0, float s, int64 n) => (bool c2, float s2, int64 n2) {
                two = Constant <value_float = 2.0> ()
                one = Constant <value_int = 1> ()
                s2 = Mul(s, two)
                n2 = Add(n, one)
                c2 = Less(s2, limit)
            }
        >
    }"""
    y, turns = agrees_with_onnxruntime(model(text), x=np.array(1, f32), limit=np.array(100, f32))
    assert (y, turns) == (128, 7)
    y, turns = run(model(text), x=np.array(200, f32), limit=np.array(100, f32))
    assert (y, turns) == (200, 0)


def test_a_loop_whose_state_grows():
    text = """
    main (int64 n, float[K] x) => (float[M] y) {
        y = Loop (n, "", x) <
            body = b (int64 i, bool c, float[P] s) => (bool c2, float[Q] s2) {
                c2 = Identity(c)
                s2 = Concat <axis = 0> (s, x)
            }
        >
    }"""
    (y,) = agrees_with_onnxruntime(model(text), n=np.array(3), x=np.array([1, 2], f32))
    same(y, np.tile(np.array([1, 2], f32), 4))


def test_loops_and_branches_inside_one_another():
    text = """
    main (int64 n, float[2] x) => (float[2] y, float[T,U] rows) {
        y, rows = Loop (n, "", x) <
            body = outer (int64 i, bool c, float[2] s) => (bool c2, float[2] s2, float[U] row) {
                c2 = Identity(c)
                three = Constant <value_int = 3> ()
                half = Constant <value_float = 0.5> ()
                t, row = Loop (three, "", s) <
                    body = inner (int64 j, bool d, float[2] u) => (bool d2, float[2] u2, float v) {
                        d2 = Identity(d)
                        one = Constant <value_int = 1> ()
                        odd0 = Mod(j, one)
                        same = Equal(i, j)
                        u2 = If (same) <
                            then_branch = t () => (float[2] p) { p = Add(u, x) },
                            else_branch = e () => (float[2] q) { q = Mul(u, half) }
                        >
                        v = ReduceSum <keepdims = 0> (u2)
                    }
                >
                s2 = Add(t, s)
            }
        >
    }"""
    x = np.array([1, 2], f32)
    for turns in (0, 2, 4):
        y, rows = agrees_with_onnxruntime(model(text), n=np.array(turns), x=x)
        s, want = x, []
        for i in range(turns):
            u, row = s, []
            for j in range(3):
                u = u + x if i == j else u / 2
                row.append(u.sum())
            s = s + u
            want.append(row)
        same(y, s)
        if turns:
            same(rows, np.array(want, f32))


def test_a_loop_over_sequences():
    text = """
    main (int64 n, float[K] x) => (seq(float[M]) y, float[J] z) {
        e = SequenceEmpty <dtype = 1> ()
        y = Loop (n, "", e) <
            body = b (int64 i, bool c, seq(float[P]) s) => (bool c2, seq(float[Q]) s2) {
                c2 = Identity(c)
                f = Cast <to = 1> (i)
                v = Mul(x, f)
                s2 = SequenceInsert(s, v)
            }
        >
        z = ConcatFromSequence <axis = 0> (y)
    }"""
    x = np.array([1, 2], f32)
    y, z = run(model(text), n=np.array(3), x=x)
    same(y, [x * f32(i) for i in range(3)])
    same(z, np.concatenate(y))


def test_a_sequence_that_grows_does_not_import_its_loop_anew():
    text = """
    main (int64 n, float[K] x) => (seq(float[M]) y, float[K] last, int64 length, seq(float[M]) doubled) {
        e = SequenceConstruct(x)
        y, last, length, doubled = Loop (n, "", e, x, zero, e) <
            body = b (int64 i, bool c, seq(float[P]) s, float[K] l, int64 m, seq(float[P]) t)
                => (bool c2, seq(float[Q]) s3, float[K] l2, int64 m2, seq(float[Q]) t2) {
                c2 = Identity(c)
                l0 = SequenceAt(s, i)
                l2 = Add(l0, x)
                s2 = SequenceInsert(s, l2)
                s3 = SequenceInsert(s2, x)
                first = Sub(i, i)
                s4 = SequenceErase(s3, first)
                m2 = SequenceLength(s4)
                t2 = SequenceMap(s3) < body = d (float[P] p) => (float[P] q) { q = Add(p, p) } >
            }
        >
    }""".replace("e = Seq", "zero = Constant <value_int = 0> ()\n e = Seq")
    x = np.array([1, 2], f32)
    y, last, length, doubled = run(model(text), n=np.array(12), x=x)
    want = [x]
    for i in range(12):
        want += [want[i] + x, x]
    same(y, want)
    same(last, want[-2])
    assert length == len(want) - 1
    same(doubled, [2 * w for w in want])


def test_a_loop_reads_slices_by_its_turn():
    text = """
    main (int64 n, float[K] x) => (float[T] y) {
        y = Loop (n, "") <
            body = b (int64 i, bool c) => (bool c2, float v) {
                c2 = Identity(c)
                axis = Constant <value_ints = [0]> ()
                one = Constant <value_ints = [1]> ()
                start = Unsqueeze(i, axis)
                end = Add(start, one)
                part = Slice(x, start, end)
                at = Gather(x, i)
                both = Add(part, at)
                v = Squeeze(both, axis)
            }
        >
    }"""
    x = np.arange(200, dtype=f32)
    same(agrees_with_onnxruntime(model(text), n=np.array(150), x=x)[0], 2 * x[:150])


def test_a_loop_whose_body_branches_on_data_is_not_unrolled():
    text = """
    main (float[N] x) => (float y, float[T] steps) {
        n = Constant <value_int = 12> ()
        zero = Constant <value_float = 0.0> ()
        y, steps = Loop (n, "", zero) <
            body = b (int64 i, bool c, float s) => (bool c2, float s2, float v) {
                c2 = Identity(c)
                v = Gather(x, i)
                up = Greater(v, zero)
                s2 = If (up) <
                    then_branch = t () => (float p) { p = Add(s, v) },
                    else_branch = e () => (float q) { q = Identity(s) }
                >
            }
        >
    }"""
    loaded = fr.load(model(text), device="cpu")
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.standard_normal(12).astype(f32)
        y, steps = loaded.run({"x": x}).values()
        np.testing.assert_allclose(y, x[x > 0].sum(), rtol=1e-5)
        same(steps, x)
    ((program, _),) = loaded._programs.values()
    assert len(list(program.stages())) == 2


def test_a_loop_body_that_declares_vectors_of_one_gets_them():
    text = """
    main (int64[1] n) => (int64[T,2] y) {
        y = Loop (n, "") <
            body = b (int64[1] i, bool[1] c) => (bool[1] c2, int64[2] v) {
                c2 = Identity(c)
                v = Concat <axis = 0> (i, i)
            }
        >
    }"""
    same(run(model(text), n=np.array([3])), np.array([[i, i] for i in range(3)]))


def test_a_loop_inside_a_function_sees_its_attributes():
    text = "main (int64 n, float[2] x) => (float[2] y) { y = local.f <a = 3.0> (n, x) }"
    function = """
    <opset_import: ["" : 18], domain: "local">
    f <a> (n, x) => (y) {
        y = Loop (n, "", x) <
            body = b (int64 i, bool c, float[2] s) => (bool c2, float[2] s2) {
                c2 = Identity(c)
                k = Constant <value_float: float = @a> ()
                s2 = Mul(s, k)
            }
        >
    }"""
    same(run(model(text, functions=function), n=np.array(2), x=np.array([1, 2], f32)), np.array([9, 18], f32))


def test_endless_loops_end():
    huge = (1 << 63) - 1
    text = f"""
    main (float x) => (float y) {{
        n = Constant <value_int = {huge}> ()
        y = Loop (n, "", x) <
            body = b (int64 i, bool c, float s) => (bool c2, float s2) {{ c2 = Identity(c)  s2 = Add(s, x) }}
        >
    }}"""
    with pytest.raises(UnsafeModel, match="turns"):
        run(model(text), x=np.array(1, f32))
    with pytest.raises(UnsafeModel, match="turns"):
        run(model(text.replace("Loop (n,", 'Loop ("",')), x=np.array(1, f32))
    fed = text.replace("float x)", "float x, int64 n)").replace(f"n = Constant <value_int = {huge}> ()", "")
    with pytest.raises(UnsafeModel, match="turns"):
        run(model(fed), x=np.array(1, f32), n=np.array(huge))


def test_a_loop_that_never_makes_its_condition_false_ends(monkeypatch):
    monkeypatch.setattr(loops, "MAX_TURNS", 50)
    text = """
    main (float x) => (float y) {
        y = Loop ("", "", x) <
            body = b (int64 i, bool c, float s) => (bool c2, float s2) { c2 = LessOrEqual(x, s)  s2 = Add(s, x) }
        >
    }"""
    with pytest.raises(UnsafeModel, match="50 turns"):
        run(model(text), x=np.array(1, f32))


def test_what_a_loop_puts_out_has_a_memory_budget(monkeypatch):
    monkeypatch.setattr(limits, "physical_memory", lambda: 1 << 26)
    monkeypatch.setattr(limits, "available_memory", lambda: 1 << 24)
    text = """
    main (int64 n, float[65536] x) => (float[T,65536] y) {
        y = Loop (n, "") < body = b (int64 i, bool c) => (bool c2, float[65536] v) { c2 = Identity(c)  v = Neg(x) } >
    }"""
    with pytest.raises(OutOfMemory, match="loop puts out"):
        run(model(text), n=np.array(1 << 20), x=np.zeros(65536, f32))


def test_turns_that_do_not_stack():
    text = """
    main (int64 n) => (float[T,M] y) {
        y = Loop (n, "") <
            body = b (int64 i, bool c) => (bool c2, float[M] v) {
                c2 = Identity(c)
                axis = Constant <value_ints = [0]> ()
                shape = Unsqueeze(i, axis)
                v = ConstantOfShape(shape)
            }
        >
    }"""
    with pytest.raises(ShapeError, match="stack"):
        run(model(text), n=np.array(3))


def test_a_known_loop_is_folded():
    text = """
    main (float[N] x) => (float[M] y) {
        n = Size(x)
        one = Constant <value_int = 1> ()
        many = Constant <value_int = 1000> ()
        count = Loop (many, "", one) <
            body = b (int64 i, bool c, int64 s) => (bool c2, int64 s2) { s2 = Add(s, one)  c2 = Less(s2, n) }
        >
        axis = Constant <value_ints = [0]> ()
        shape = Unsqueeze(count, axis)
        y = Expand(one_f, shape)
    }""".replace("y = Expand", "one_f = Constant <value_float = 1.0> ()\n y = Expand")
    loaded = fr.load(model(text), device="cpu")
    same(loaded.run({"x": np.zeros(4, f32)})["y"], np.ones(4, f32))
    assert all(program.static for program, _ in loaded._programs.values())


def test_a_known_loop_over_large_constants():
    text = """
    main (float x) => (float y) {
        one = Constant <value_float = 1.0> ()
        shape = Constant <value_ints = [200, 300]> ()
        flat = Constant <value_ints = [-1]> ()
        ones = Expand(one, shape)
        three = Constant <value_int = 3> ()
        s = Loop (three, "", one) <
            body = b (int64 i, bool c, float s) => (bool c2, float s2) {
                turned = Transpose(ones)
                line = Reshape(turned, flat)
                t = ReduceSum <keepdims = 0> (line)
                s2 = Add(s, t)
                c2 = Less(s, t)
            }
        >
        y = Mul(s, x)
    }"""
    same(run(model(text), x=np.array(2, f32)), np.array(2 * (1 + 2 * 60000), f32))


# -- Scan -------------------------------------------------------------------------------------------------------------

SCAN = """
main (float[2] s, float[A,B,2] x, float[C,2] w) => (float[2] final, float[P,Q] y, float[R,S] z) {
    final, y, z = Scan <num_scan_inputs = 2, scan_input_axes = [1, 0], scan_input_directions = [1, 0],
                        scan_output_axes = [1, 0], scan_output_directions = [0, 1],
        body = b (float[2] a, float[A,2] u, float[2] v) => (float[2] a2, float[2] o, float[2] p) {
            zero = Constant <value_ints = [0]> ()
            t = ReduceSum <keepdims = 0> (u, zero)
            a1 = Add(a, t)
            a2 = Mul(a1, v)
            o = Identity(a2)
            p = Sub(a2, a)
        }
    > (s, x, w)
}"""


def scanned(s, x, w):
    y, z = [], []
    for t in range(len(w)):
        new = (s + x[:, len(w) - 1 - t].sum(0)) * w[t]
        y.append(new)
        z.append(new - s)
        s = new
    return s, np.stack(y, 1), np.stack(z[::-1])


@pytest.mark.parametrize("unroll", [0, 2000])
def test_scan_directions_and_axes(monkeypatch, unroll):
    monkeypatch.setattr(registry, "UNROLL_NODES", unroll)
    rng = np.random.default_rng(0)
    feeds = {"s": rng.random(2, f32), "x": rng.random((3, 4, 2), f32), "w": rng.random((4, 2), f32)}
    for got, want in zip(agrees_with_onnxruntime(model(SCAN), **feeds), scanned(**feeds), strict=True):
        same(got, want)


def test_scan_over_nothing():
    feeds = {"s": np.ones(2, f32), "x": np.ones((3, 0, 2), f32), "w": np.ones((0, 2), f32)}
    final, y, z = run(model(SCAN), **feeds)
    same(final, np.ones(2, f32))
    assert y.shape == (2, 0) and z.shape == (0, 2)


def test_scan_of_opset_8_has_a_batch_and_lengths():
    text = """
    main (int64[B] lengths, float[B,2] s, float[B,T,2] x) => (float[B,2] final, float[B,T,2] y) {
        final, y = Scan <num_scan_inputs = 1, directions = [1],
            body = b (float[2] a, float[2] u) => (float[2] a2, float[2] o) { a2 = Add(a, u)  o = Identity(a2) }
        > (lengths, s, x)
    }"""
    rng = np.random.default_rng(0)
    s, x, lengths = rng.random((2, 2), f32), rng.random((2, 4, 2), f32), np.array([4, 2])
    final, y = run(model(text, opset=8), s=s, x=x, lengths=lengths)
    want = np.zeros_like(y)
    for b, n in enumerate(lengths):
        for t in range(n):
            want[b, t] = s[b] + x[b, :n][::-1][: t + 1].sum(0)
        same(final[b], want[b, n - 1])
    same(y, want)


# -- sequences and optionals ------------------------------------------------------------------------------------------


def test_sequence_ops_with_known_positions():
    text = """
    main (float[2] a, float[2] b) => (seq(float[2]) y, float[2] z, int64 n) {
        s = SequenceConstruct(a, b, a)
        minus = Constant <value_int = -1> ()
        zero = Constant <value_int = 0> ()
        t = SequenceErase(s, zero)
        y = SequenceInsert(t, a, zero)
        z = SequenceAt(y, minus)
        n = SequenceLength(y)
    }"""
    a, b = np.array([1, 2], f32), np.array([3, 4], f32)
    y, z, n = run(model(text), a=a, b=b)
    same(y, [a, b, a])
    same(z, a)
    assert n == 3


@pytest.mark.parametrize("position", [0, 1, -1, -2])
def test_sequence_ops_with_positions_from_data(position):
    text = """
    main (seq(float[N]) s, float[N] x, int64 i) => (float[N] at, seq(float[N]) without, seq(float[N]) more) {
        at = SequenceAt(s, i)
        without = SequenceErase(s, i)
        more = SequenceInsert(s, x, i)
    }"""
    s, x = [np.array([1], f32), np.array([2, 3], f32)], np.array([9], f32)
    at, without, more = run(model(text), s=s, x=x, i=np.array(position))
    same(at, s[position])
    same(without, [s[1 - position % 2]])
    want = list(s)
    want.insert(position, x)
    same(more, want)


def test_a_position_outside_a_sequence():
    text = "main (seq(float[N]) s, int64 i) => (float[N] y) { y = SequenceAt(s, i) }"
    with pytest.raises(FlamertError, match="outside a sequence of 1"):
        run(model(text), s=[np.ones(1, f32)], i=np.array(1))


def test_split_to_sequence_and_back():
    text = """
    main (float[A,B] x) => (seq(float[C,D]) parts, float[A,B] y, float[E,F,G] stacked, seq(float[A]) columns) {
        sizes = Constant <value_ints = [1, 3]> ()
        parts = SplitToSequence <axis = 1> (x, sizes)
        y = ConcatFromSequence <axis = 1> (parts)
        columns = SplitToSequence <axis = 1, keepdims = 0> (x)
        pairs = SequenceConstruct(x, x)
        stacked = ConcatFromSequence <axis = -1, new_axis = 1> (pairs)
    }"""
    x = np.arange(8, dtype=f32).reshape(2, 4)
    parts, y, stacked, columns = run(model(text), x=x)
    same(parts, [x[:, :1], x[:, 1:]])
    same(y, x)
    same(stacked, np.stack([x, x], -1))
    same(columns, list(x.T))


def test_sequence_map_captures_and_takes_several_inputs():
    text = """
    main (seq(float[N]) s, float[N] x, float[N] w) => (seq(float[N]) y, seq(float[N]) z) {
        y, z = SequenceMap (s, x) <
            body = b (float[N] e, float[N] t) => (float[N] p, float[N] q) { p = Add(e, t)  q = Mul(e, w) }
        >
    }"""
    s, x, w = [np.array([1, 2], f32), np.array([3, 4], f32)], np.array([5, 6], f32), np.array([7, 8], f32)
    y, z = run(model(text), s=s, x=x, w=w)
    same(y, [e + x for e in s])
    same(z, [e * w for e in s])
    assert run(model(text), s=[], x=x, w=w) == [[], []]


def test_optionals():
    text = """
    main (optional(float[N]) o) => (bool has, float[M] y) {
        has = OptionalHasElement(o)
        y = If (has) <
            then_branch = t () => (float[N] a) { a = OptionalGetElement(o) },
            else_branch = e () => (float[K] b) { b = Constant <value_floats = [7.0]> () }
        >
    }"""
    has, y = run(model(text), o=np.array([1, 2], f32))
    assert has
    same(y, np.array([1, 2], f32))
    has, y = run(model(text))
    assert not has
    same(y, np.array([7], f32))


def test_an_empty_optional_has_no_element_to_get():
    with pytest.raises(InvalidModel, match="empty optional"):
        run(model("main (optional(float[N]) o) => (float[N] y) { y = OptionalGetElement(o) }"))


# -- shapes from data -------------------------------------------------------------------------------------------------


def test_nonzero_then_static_again():
    text = """
    main (float[A,B] x) => (int64[R,N] at, float[N] y) {
        at = NonZero(x)
        rows = Transpose <perm = [1, 0]> (at)
        found = GatherND(x, rows)
        y = Add(found, found)
    }"""
    for x in (np.eye(3, dtype=f32), np.zeros((2, 2), f32)):
        at, y = agrees_with_onnxruntime(model(text), x=x)
        same(at, np.array(np.nonzero(x)))
        same(y, 2 * x[np.nonzero(x)])


def test_shapes_read_from_data():
    text = """
    main (float[A,B] x, int64[R] shape, int64[1] n) => (float[P,Q] y, float[S] z, float[U,V] w) {
        y = Reshape(x, shape)
        one = Constant <value_float = 1.0> ()
        z = Expand(one, n)
        zero = Constant <value_ints = [0]> ()
        w = Slice(x, zero, n, zero)
    }"""
    x = np.arange(6, dtype=f32).reshape(2, 3)
    y, z, w = agrees_with_onnxruntime(model(text), x=x, shape=np.array([3, -1]), n=np.array([1]))
    same(y, x.reshape(3, 2))
    same(z, np.ones(1, f32))
    same(w, x[:1])


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_compress(axis):
    attribute = "" if axis is None else f"<axis = {axis}>"
    text = f"main (float[A,B] x, bool[N] c) => (float[P] y) {{ y = Compress {attribute} (x, c) }}"
    if axis is not None:
        text = text.replace("float[P]", "float[P,Q]")
    x, c = np.arange(6, dtype=f32).reshape(2, 3), np.array([False, True])
    same(agrees_with_onnxruntime(model(text), x=x, c=c)[0], np.compress(c, x, axis))


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("in_order", [0, 1])
def test_unique(axis, in_order):
    attributes = f"sorted = {in_order}" + ("" if axis is None else f", axis = {axis}")
    result = "float[P]" if axis is None else "float[P,Q]"
    text = f"""main (float[A,B] x) => ({result} y, int64[C] first, int64[D] inverse, int64[E] counts) {{
        y, first, inverse, counts = Unique <{attributes}> (x) }}"""
    x = np.array([[2, 1, 2, 0], [2, 1, 2, 3], [2, 1, 2, 0]], f32)
    agrees_with_onnxruntime(model(text), x=x)


def test_unique_of_strings_by_rows():
    text = "main (string[A,B] x) => (string[P,Q] y, int64[C] i, int64[D] j) { y, i, j = Unique <axis = 0> (x) }"
    y, first, inverse = run(model(text), x=np.array([["b", "a"], ["a", "z"], ["b", "a"]], object))
    assert y.tolist() == [["a", "z"], ["b", "a"]] and first.tolist() == [1, 0] and inverse.tolist() == [1, 0, 1]


@pytest.mark.parametrize(("start", "limit", "delta"), [(0, 5, 1), (10, 3, -2), (3, 3, 1), (5, 3, 1)])
def test_range_from_data(start, limit, delta):
    feeds = {"a": np.array(start), "b": np.array(limit), "c": np.array(delta)}
    text = "main (int64 a, int64 b, int64 c) => (int64[N] y) { y = Range(a, b, c) }"
    same(agrees_with_onnxruntime(model(text), **feeds)[0], np.arange(start, limit, delta))
    floats = {name: x.astype(f32) / 4 for name, x in feeds.items()}
    text = text.replace("int64", "float")
    same(agrees_with_onnxruntime(model(text), **floats)[0], np.arange(start, limit, delta).astype(f32) / 4)


def test_a_range_without_end():
    text = "main (float a, float b, float c) => (float[N] y) { y = Range(a, b, c) }"
    feeds = {"a": np.array(0, f32), "b": np.array(1e33, f32), "c": np.array(1e-3, f32)}
    with pytest.raises(FlamertError):
        run(model(text), **feeds)
    with pytest.raises(FlamertError):
        run(model(text), **{**feeds, "c": np.array(0, f32)})


@pytest.mark.parametrize("index", [3, -4])
@pytest.mark.parametrize(
    "node",
    [
        "Gather(x, i)",
        "GatherElements(x, i)",
        "GatherND(x, m)",
        "ScatterElements(x, i, u)",
        "ScatterND(x, m, u)",
    ],
)
def test_an_index_out_of_range(node, index):
    text = f"""main (float[3] x, int64[1] i, float[1] u) => (float[N] y) {{
        axis = Constant <value_ints = [1]> ()
        m = Unsqueeze(i, axis)
        y = {node}
    }}"""
    feeds = {"x": np.zeros(3, f32), "i": np.array([index]), "u": np.ones(1, f32)}
    with pytest.raises(ShapeError, match="outside"):
        run(model(text), **feeds)
    run(model(text), **{**feeds, "i": np.array([2])})
    run(model(text), **{**feeds, "i": np.array([-3])})


# -- strings, names ---------------------------------------------------------------------------------------------------


def test_strings_move_like_anything_else():
    text = """
    main (string[N] s, bool[N] c, int64[M] i) => (string[P,Q] r, string[R] j, string[M] g, string[N] w, string[N] d) {
        shape = Constant <value_ints = [1, -1]> ()
        r = Reshape(s, shape)
        more = Constant <value_strings = ["x", "y"]> ()
        j = Concat <axis = 0> (s, more)
        g = Gather(s, i)
        word = Constant <value_string = "-"> ()
        w = Where(c, s, word)
        d = Identity(s)
    }"""
    s = np.array(["a", "b", "c"], object)
    r, j, g, w, d = run(model(text), s=s, c=np.array([True, False, True]), i=np.array([2, -3]))
    assert r.tolist() == [["a", "b", "c"]] and j.tolist() == ["a", "b", "c", "x", "y"] and g.tolist() == ["c", "a"]
    assert w.tolist() == ["a", "-", "c"] and d.tolist() == ["a", "b", "c"]


def test_any_value_can_be_asked_for():
    loaded = fr.load(model("main (float[N] x) => (float[N] z) { y = Add(x, x)  z = Mul(y, x) }"), device="cpu")
    x = np.array([1, 2], f32)
    same(list(loaded.run({"x": x}, ["y", "z", "x"]).values()), [2 * x, 2 * x * x, x])


def test_an_initializer_among_the_inputs_is_a_default():
    text = "main (float[2] x, float[2] w = {3, 4}) => (float[2] y) { y = Mul(x, w) }"
    x = np.array([1, 2], f32)
    same(run(model(text), x=x), np.array([3, 8], f32))
    same(run(model(text), x=x, w=x), x * x)


def test_sequences_come_and_go():
    text = "main (seq(float[N]) s) => (seq(float[N]) t) { t = Identity(s) }"
    s = [np.array([1], f32), np.array([2, 3], f32)]
    same(run(model(text), s=s), s)


def test_results_belong_to_the_caller():
    text = "main (seq(float[N]) s, float[N] x) => (seq(float[N]) t, float[N] y) { t = Identity(s)  y = Identity(x) }"
    x = np.array([1], f32)
    t, y = run(model(text), s=[x], x=x)
    y += 1
    t[0] += 1
    assert x == 1
