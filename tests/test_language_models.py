"""Language models of `models/`: valid ONNX, the same under other runtimes at any size, the same as the originals, trainable."""

import numpy as np
import onnx
import pytest
import safetensors.numpy

import flamert as fr
from flamert.errors import InputError
from models import text
from models.bert import make as bert
from models.bert import train as bert_train
from models.gpt2 import make as gpt2
from models.llama import make as llama
from models.lstm import make as lstm
from models.lstm import train as lstm_train

TOKENS = 50
TINY = {
    "bert": bert.bert(**bert.CONFIGURATIONS["tiny"]),
    "masked bert": bert.bert(**bert.CONFIGURATIONS["tiny"], masked=True),
    "tagging bert": bert.bert(**bert.CONFIGURATIONS["tiny"], kinds=TOKENS),
    "gpt2": gpt2.gpt2(**gpt2.CONFIGURATIONS["tiny"]),
    "llama": llama.llama(**llama.CONFIGURATIONS["tiny"]),
    "lstm": lstm.lstm(**lstm.CONFIGURATIONS["tiny"]),
}


def drawn(network, batch, length, seed=0):
    """Inputs of a network; of the mask only the last places are hidden."""
    rng = np.random.default_rng(seed)
    sizes = {"batch": batch, "sequence": length}
    found = {}
    for name, (dtype, dims) in network.inputs.items():
        shape = [sizes.get(d, d) for d in dims]
        found[name] = rng.integers(TOKENS, size=shape) if dtype == np.int64 else rng.standard_normal(shape, "f")
    if "attention_mask" in found:
        found["attention_mask"] = (np.arange(length) < rng.integers(1, length + 1, (batch, 1))).astype(np.int64)
        found["token_type_ids"] %= 2
    return found


def stirred(network, seed=0):
    """Weights by name none of which is 0 or 1."""
    rng = np.random.default_rng(seed)
    return {n: a + 0.1 * rng.standard_normal(a.shape, "f") for n, a in network.initial().items()}


@pytest.mark.parametrize("opset", [17, 21, 25])
@pytest.mark.parametrize("family", TINY)
def test_other_runtimes_agree_at_any_size(family, opset):
    runtime = pytest.importorskip("onnxruntime")
    network = TINY[family]
    proto = network.proto(opset, weights=stirred(network))
    onnx.checker.check_model(proto, full_check=True)
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    model = fr.load(proto, device="cpu")
    for batch, length in ((1, 1), (3, 24)):
        inputs = drawn(network, batch, length)
        for ours, theirs in zip(model.run(inputs).values(), session.run(None, inputs), strict=True):
            assert theirs.shape == ours.shape and theirs.std() > 1e-2
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["masked bert", "tagging bert", "gpt2", "llama", "lstm"])
def test_training_lowers_the_loss(family):
    network = TINY[family]
    model = fr.load(network.proto(), device="cpu")
    trainer = fr.Trainer(model, text.cross_entropy, fr.optim.AdamW(lr=1e-2))
    assert set(trainer.trainable) == set(network.parameters)
    inputs = drawn(network, 4, 12)
    losses = [float(trainer.step(inputs, inputs["input_ids"])) for _ in range(20)]
    assert abs(losses[0] - np.log(TOKENS)) < 0.5 and losses[-1] < 0.8 * losses[0]


def test_dropout_waits_for_training():
    """What is written drops nothing; a Trainer drops, other elements at every step, unless it is told not to."""
    model = fr.load(TINY["gpt2"].proto(), device="cpu")
    inputs = drawn(TINY["gpt2"], 2, 8)
    for train_mode, different in ((True, 3), (False, 1)):
        trainer = fr.Trainer(model, text.cross_entropy, fr.optim.SGD(lr=0.0), train_mode=train_mode)
        losses = {float(trainer.step(inputs, inputs["input_ids"])) for _ in range(3)}
        assert len(losses) == different


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (bert.bert(), 109_482_240),
        (bert.bert(**bert.CONFIGURATIONS["large"]), 335_141_888),
        (gpt2.gpt2(), 124_439_808),
        (gpt2.gpt2(**gpt2.CONFIGURATIONS["xl"]), 1_557_611_200),
        (llama.llama(), 1_100_048_384),
        (llama.llama(**llama.CONFIGURATIONS["llama-2-7b"]), 6_738_415_616),
        (llama.llama(**llama.CONFIGURATIONS["smollm2-135m"]), 134_515_008),
    ],
)
def test_full_sizes_have_the_published_number_of_parameters(network, count):
    assert network.size == count


def test_weights_come_from_files_under_the_names_that_files_use(tmp_path):
    network = TINY["bert"]
    weights = stirred(network)
    old = {n.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): a for n, a in weights.items()}
    safetensors.numpy.save_file({**old, "cls.seq_relationship.bias": np.zeros(2, "f")}, tmp_path / "model.safetensors")
    model = fr.load(network.proto(weights=tmp_path / "model.safetensors"), device="cpu")
    for name, array in weights.items():
        np.testing.assert_array_equal(model.params[name], array)
    with pytest.raises(InputError, match=r"lack 1 of .* bert\.pooler\.dense\.bias"):
        network.filled({n: a for n, a in weights.items() if n != "bert.pooler.dense.bias"})
    with pytest.raises(InputError, match=r"'bert\.pooler\.dense\.bias' is \[3\]"):
        network.filled({**weights, "bert.pooler.dense.bias": np.zeros(3)})


SHARED = {"vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def original(family):
    """The model of Hugging Face's transformers that a tiny network is to equal."""
    tf = pytest.importorskip("transformers")
    tf.logging.set_verbosity_error()
    none = {"bos_token_id": None, "eos_token_id": None}
    if family == "llama":
        config = tf.LlamaConfig(**SHARED, num_key_value_heads=2, intermediate_size=48, rms_norm_eps=1e-5, **none)
        return tf.LlamaForCausalLM(config)
    if family == "gpt2":
        config = tf.GPT2Config(vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=24, **none)
        return tf.GPT2LMHeadModel(config)
    config = tf.BertConfig(**SHARED, intermediate_size=128, max_position_embeddings=24, num_labels=TOKENS)
    kinds = {"bert": tf.BertModel, "masked bert": tf.BertForMaskedLM, "tagging bert": tf.BertForTokenClassification}
    return kinds[family](config)


@pytest.mark.parametrize("family", ["bert", "masked bert", "tagging bert", "gpt2", "llama"])
def test_equals_the_original(family):
    """Weights go there by name and back; the same numbers come out."""
    torch = pytest.importorskip("torch")
    theirs = original(family).eval()
    network = TINY[family]
    own = theirs.state_dict()
    with torch.no_grad():
        for name, array in stirred(network).items():
            own[name if name in own else name.removeprefix("bert.")].copy_(torch.from_numpy(array))
        model = fr.load(network.proto(weights={n: w.numpy() for n, w in own.items()}), device="cpu")
        assert sum(w.numel() for w in theirs.parameters()) == network.size
        for batch, length in ((1, 5), (3, 24)):
            inputs = drawn(network, batch, length)
            result = theirs(**{n: torch.from_numpy(a) for n, a in inputs.items()})
            for name, ours in model.run(inputs).items():
                np.testing.assert_allclose(ours, result[name].numpy(), atol=1e-5, rtol=0)


def test_lstm_equals_torch():
    torch = pytest.importorskip("torch")
    network, inputs = TINY["lstm"], drawn(TINY["lstm"], 3, 7)
    weights = stirred(network)
    parts = torch.nn.ModuleDict(
        {"embedding": torch.nn.Embedding(TOKENS, 8), "lstm": torch.nn.LSTM(8, 16, 2), "decoder": torch.nn.Linear(16, TOKENS)}
    )
    parts.load_state_dict({n: torch.from_numpy(a) for n, a in weights.items()})
    ids, *state = (torch.from_numpy(a) for a in inputs.values())
    with torch.no_grad():
        y, (h, c) = parts["lstm"](parts["embedding"](ids.T), tuple(state))
        want = [parts["decoder"](y).transpose(0, 1), h, c]
    for ours, theirs in zip(fr.load(network.proto(weights=weights), device="cpu").run(inputs).values(), want, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5, rtol=0)


def test_a_state_carries_on():
    """Two halves of a text, with the state passed on, give what the whole does."""
    model = fr.load(TINY["lstm"].proto(), device="cpu")
    inputs = drawn(TINY["lstm"], 2, 10)
    whole = model.run(inputs)
    first = model.run({**inputs, "input_ids": inputs["input_ids"][:, :4]})
    second = model.run({"input_ids": inputs["input_ids"][:, 4:], "h": first["h_n"], "c": first["c_n"]})
    for name in ("h_n", "c_n"):
        np.testing.assert_allclose(second[name], whole[name], atol=1e-6)
    np.testing.assert_allclose(second["logits"], whole["logits"][:, 4:], atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoders_do_not_look_ahead(family):
    model = fr.load(TINY[family].proto(), device="cpu")
    ids = drawn(TINY[family], 2, 10)["input_ids"]
    other = np.where(np.arange(10) < 6, ids, (ids + 1) % TOKENS)
    a, b = model(ids), model(other)
    np.testing.assert_allclose(a[:, :6], b[:, :6], atol=1e-6)
    assert abs(a[:, 6:] - b[:, 6:]).max() > 1e-2


def test_text_is_split_by_file_and_windows_fit_the_models():
    learnt, held = text.sources()
    assert len(learnt) > 2 * len(held) > 0 and b"import" in held.tobytes() and b"import" in learnt.tobytes()
    windows = text.Windows(learnt, 24, 4, 3)
    (inputs, target), *rest = windows
    assert len(rest) == 2 and (inputs["input_ids"][:, 1:] == target[:, :-1]).all()
    windows.set_epoch(1)
    assert not np.array_equal(next(iter(windows))[1], target)
    inputs, _ = next(iter(lstm_train.Windows(learnt, 24, 4, 1)))
    assert {n: a.shape for n, a in inputs.items()} == {"input_ids": (4, 24), "h": (1, 4, 256), "c": (1, 4, 256)}


def test_what_python_is_made_of():
    source = 'def f(x, *, a=1.5):  # café\n    """é\n    x"""\n\f    return "a" + \'b\' if x else None\n'
    marked = bert_train.marked(source.encode())
    assert (marked & 255).astype(np.uint8).tobytes().decode() == source
    letters = np.array(list(bert_train.KINDS.values()))[marked >> 8]
    lines = "".join(np.where((marked & 255) == ord("\n"), "\n", letters)).splitlines()
    assert lines[0] == "kkk nono oo no111oo  ccccccc"  # é is two bytes
    assert lines[1:3] == ["    sssss", "ssssssss"]
    assert lines[3] == "     kkkkkk sss o sss kk n kkkk kkkk"
    (inputs, target), *_ = bert_train.Windows(marked, 24, 4, 1)
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"} and target.shape == (4, 24)
    assert target.max() < len(letters) and inputs["input_ids"].max() < 256


def test_a_decoder_writes_what_it_knows_by_heart():
    line = "to_learn(by, heart) "
    small = {**gpt2.CONFIGURATIONS["tiny"], "vocabulary": 256, "drop": 0.0}
    model = fr.load(gpt2.gpt2(**small).proto(), device="cpu")
    trainer = fr.Trainer(model, text.cross_entropy, fr.optim.Adam(lr=1e-2))
    for inputs, target in text.Windows(np.frombuffer(line.encode() * 3, np.uint8), 24, 8, 100):
        trainer.step(inputs, target)
    assert text.continued(model, line, 40, context=24) == line * 3


def test_a_state_stands_for_what_was_read():
    """The model that reads every byte once goes on like one that reads everything again for each."""
    model = fr.load(lstm.make("bytes"), device="cpu")
    rng, tokens = np.random.default_rng(0), list(b"def ")
    for _ in range(9):
        tokens.append(text.drawn(model(input_ids=np.array([tokens]), **lstm_train.zeros(1))[0][0, -1], rng))
    assert lstm_train.continued(model, "def ", 9) == bytes(tokens).decode(errors="replace")
