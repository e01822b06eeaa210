"""The main job: what files are called, how they are divided, what counts as the same; and the job itself on made-up ones."""

import json
from collections import Counter
from pathlib import Path, PurePath

import numpy as np
import pytest

import flamert as fr
from models.fetch import Unavailable, fetch
from models.magika import corpus


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("numpy/core.py", "source"),
        ("numpy/tests/util.py", "test"),
        ("test_it.py", "test"),
        ("numpy/core.pyi", "stub"),
        ("rich-1.0.dist-info/METADATA", "metadata"),
        ("rich-1.0.dist-info/RECORD", "record"),
        ("rich-1.0.dist-info/licenses/LICENSE.txt", "licence"),
        ("rich-1.0.dist-info/top_level.txt", None),
        ("COPYING", "licence"),
        ("license.py", "source"),
        ("include/numpy/ndarray.h", "C header"),
        ("readme.unknown", None),
    ],
)
def test_names_tell_kinds(path, kind):
    assert corpus.kind_of(PurePath(path)) == kind


def test_a_directory_is_the_same_wherever_it_lies():
    assert corpus.directory(PurePath("pip/_vendor/rich/__pycache__")) == corpus.directory(PurePath("rich"))
    assert corpus.directory(PurePath("rich-13.1.dist-info")) == corpus.directory(PurePath("rich-15.0.0.dist-info"))
    assert corpus.directory(PurePath("numpy/random")) != corpus.directory(PurePath("numpy"))


def row(text):
    found = np.full(2048, 256, np.int32)
    found[: len(text)] = np.frombuffer(text, np.uint8)
    return found


def test_near_duplicates_share_hashes():
    rng = np.random.default_rng(0)
    text = bytes(rng.integers(32, 127, 1000, np.uint8))
    other = bytes(rng.integers(32, 127, 1000, np.uint8))
    same, near, far, blank = corpus.signatures([row(text), row(text[:900] + other[:100]), row(other), row(b"\0" * 900)])
    assert (same == near).mean() > corpus.ALIKE > 0.1 > (same == far).mean()
    assert (blank == same).mean() == 0


def bytes_of(path):
    data = Path(path).read_bytes()[:2048]
    return row(data) if len(data) > 8 else None


def test_what_is_held_out_is_apart(monkeypatch, tmp_path):
    """Directories of made-up sources and stubs, some of them copies: none is on both sides, and no copy is held out."""
    rng = np.random.default_rng(0)
    found = {"source": {}, "stub": {}, "rare": {"one": [tmp_path / "x"]}}
    (tmp_path / "x").write_bytes(bytes(range(100)))
    for i in range(40):
        for kind in ("source", "stub"):
            path = tmp_path / f"{kind}{i}"
            path.write_bytes(b"the same again" * 50 if i % 5 == 0 else bytes(rng.integers(0, 256, 700, np.uint8)))
            found[kind][f"folder{i}"] = [path]
    monkeypatch.setattr(corpus, "installed", lambda: found)
    made = corpus.collect(bytes_of, train=16, held_out=5)
    assert made.names == ("source", "stub")
    assert Counter(made.train.kinds.tolist()) == {0: 16, 1: 16} and set(made.held_out.kinds.tolist()) == {0, 1}
    assert not {r.tobytes() for r in made.train.rows} & {r.tobytes() for r in made.held_out.rows}
    again = corpus.collect(bytes_of, train=16, held_out=5)
    assert np.array_equal(again.train.rows, made.train.rows) and again.alike == made.alike
    assert made.alike > 0 and not any(r.tobytes() == row(b"the same again" * 50).tobytes() for r in made.held_out.rows)


def test_files_are_found_where_python_keeps_them(monkeypatch, tmp_path):
    library, packages = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    for path in ("json/__init__.py", "json/__pycache__/__init__.pyc", "site-packages/rich/a.py", "site-packages/rich/b.pyi"):
        (library / path).parent.mkdir(parents=True, exist_ok=True)
        (library / path).touch()
    places = {"stdlib": library, "platstdlib": library, "purelib": packages, "platlib": packages, "include": tmp_path / "none"}
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {name: str(path) for name, path in places.items()})
    found = corpus.installed()
    assert found["source"] == {"json": [library / "json/__init__.py"], "rich": [packages / "rich/a.py"]}
    assert found["bytecode"].keys() == {"json"} and found["stub"].keys() == {"rich"}


def test_the_job(monkeypatch, tmp_path, capsys):
    """On made-up files of three kinds that no one could confuse."""
    from models.magika import finetune

    rng = np.random.default_rng(0)

    def part(n):
        rows = [row(bytes(rng.integers(low, low + 60, 900, np.uint8))) for low in (0, 90, 190) for _ in range(n)]
        return corpus.Part(np.stack(rows), np.repeat(np.arange(3), n))

    made = corpus.Corpus(("low", "middle", "high"), part(12), part(4), 7)
    monkeypatch.setattr(finetune, "collect", lambda features, files: made)
    out, curve = tmp_path / "tuned.onnx", tmp_path / "curve.svg"
    monkeypatch.setattr("sys.argv", ["finetune", "-o", str(out), "--plot", str(curve), "--epochs", "4", "--device", "cpu"])
    try:
        fetch("magika_v3_3")
    except Unavailable as error:
        pytest.skip(str(error))
    finetune.main()
    said = capsys.readouterr().out
    assert "epoch 4 of 4" in said and "tuned: accuracy 100.0%" in said and "the same kind for 12 of 12 files" in said
    assert curve.read_text().startswith("<svg")
    tuned = fr.load(out, device="cpu")
    assert tuned.outputs[0].shape[-1] == 3 and json.loads(tuned.origin.about().metadata["kinds"]) == ["low", "middle", "high"]
