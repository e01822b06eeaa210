"""Adapting a trained model: low-rank terms beside its weights (LoRA), and a new last layer."""

from __future__ import annotations

import fnmatch
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flamert import safetensors
from flamert.errors import CheckpointError, InputError
from flamert.files import write_files
from flamert.model import Model
from flamert.origin import Projection

PREFIX = "base_model.model."
"""What Hugging Face's PEFT puts in front of the names in its files."""

CONFIG = "adapter_config.json"
FILE = "adapter_model.safetensors"

INITIAL = {
    "kaiming": lambda rng, n_in, n_out: rng.uniform(-1, 1, (n_out, n_in)) / math.sqrt(n_in),
    "xavier": lambda rng, n_in, n_out: rng.uniform(-1, 1, (n_out, n_in)) * math.sqrt(6 / (n_in + n_out)),
    "zeros": lambda rng, n_in, n_out: np.zeros((n_out, n_in)),
}
"""First weights of a layer by name; "kaiming" is torch.nn.Linear's."""


def add_lora(
    model: Model, targets: str | Sequence[str], *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, seed: int = 0
) -> tuple[str, ...]:
    """Put a term (alpha / rank) · B·A beside each weight that fits `targets`; see `Model.add_lora`. Returns their names.

    A is drawn as torch.nn.Linear draws its weights, B starts at zero, so that the model computes what it did.
    Source: Hu et al. 2021.
    """
    chosen = _chosen(model.origin.projections(), [targets] if isinstance(targets, str) else list(targets))
    return _put_beside(model, chosen, rank, alpha, dropout, seed)


def _put_beside(
    model: Model, places: Sequence[Projection], rank: int, alpha: float, dropout: float, seed: int = 0
) -> tuple[str, ...]:
    if rank < 1 or not 0 <= dropout < 1:
        raise InputError(f"rank={rank}, dropout={dropout}: at least 1, and in [0, 1)")
    if dropout and (plain := [p.name for p in places if not p.beside]):
        raise InputError(f"dropout needs a product of its own for each weight, which {plain[0]!r} is not; leave it at 0")
    rng = np.random.default_rng(seed)
    for at in places:
        dtype = model.params[at.weight].dtype
        a = (rng.uniform(-1, 1, (rank, *at.operand)) / math.sqrt(math.prod(at.operand))).astype(dtype)
        b = np.zeros((at.outputs, rank, *[1] * (len(at.operand) - 1)), dtype)
        model.origin.attach(at, a, b, alpha / rank, dropout)
    names = [p.name for p in places]
    model.adaptations.append({"call": "add_lora", "layers": names, "rank": rank, "alpha": alpha, "dropout": dropout})
    model.follow_origin()
    return tuple(names)


def _chosen(projections: Sequence[Projection], patterns: Sequence[str]) -> list[Projection]:
    """Those that a glob pattern fits, by their name, its last parts, or their weight's name."""
    found: list[Projection] = []
    for pattern in patterns:
        fits = [
            p
            for p in projections
            if any(fnmatch.fnmatchcase(n, pattern) for n in (p.name, p.weight)) or fnmatch.fnmatchcase(p.name, f"*.{pattern}")
        ]
        if not fits:
            known = ", ".join(p.name for p in projections[:20]) or "none"
            raise InputError(f"no weight of a MatMul, Gemm, Conv or Attention fits {pattern!r}; there are {known}")
        found += [p for p in fits if p not in found]
    return found


def merge_lora(model: Model) -> None:
    """Add all terms to their weights, once and for all."""
    model.params.settle()
    if not model.origin.grafts:
        raise InputError("the model has no low-rank terms to merge")
    merged = model.origin.merged()
    model.origin.detach()
    for name, array in merged.items():
        model.params[name] = array
    model.adaptations.append({"call": "merge_lora"})
    model.follow_origin()


def save_lora(model: Model, path: str | os.PathLike[str]) -> None:
    """Write the factors of all terms as safetensors, under the names that PEFT has for them.

    path: a file; or a folder that is there, which gets PEFT's two files.
    """
    terms = model.origin.grafts
    if not terms:
        raise InputError("the model has no low-rank terms; add_lora makes them")
    ranks = {name: len(model.params[term.a]) for name, term in terms.items()}
    alphas = {name: term.scale * ranks[name] for name, term in terms.items()}
    factors = [(f"{PREFIX}{name}.lora_", term) for name, term in terms.items()]
    arrays = {f"{stem}A.weight": model.params[term.a] for stem, term in factors}
    arrays |= {f"{stem}B.weight": model.params[term.b] for stem, term in factors}
    first = next(iter(terms))
    config = {
        "peft_type": "LORA",
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "target_modules": list(terms),
        "rank_pattern": {n: r for n, r in ranks.items() if r != ranks[first]},
        "alpha_pattern": {n: a for n, a in alphas.items() if a != alphas[first]},
    }
    contents = safetensors.contents(arrays, {"format": "pt", "config": json.dumps(config)})
    path = os.path.abspath(os.fspath(path))
    if os.path.isdir(path):
        write_files(path, {CONFIG: [json.dumps(config, indent=2).encode()], FILE: [contents]})
    else:
        write_files(os.path.dirname(path), {os.path.basename(path): [contents]})


def load_lora(model: Model, path: str | os.PathLike[str], *, alpha: float | None = None) -> tuple[str, ...]:
    """Put terms from a file, or a folder, that `save_lora` or PEFT wrote beside the model's weights. Returns their names.

    alpha: needed where neither the file nor an adapter_config.json beside it says it. Terms that the model has already take
    over the file's factors.
    Raises CheckpointError, and changes nothing, where file and model do not fit.
    """
    path = os.fspath(path)
    file = os.path.join(path, FILE) if os.path.isdir(path) else path
    arrays, metadata = safetensors.read(file)
    try:
        found = _terms(model, arrays, _config(file, metadata), alpha)
    except CheckpointError as error:
        error.at(file)
        raise
    for name, (at, a, b, own) in found.items():
        there = model.origin.grafts.get(name)
        if there is None:
            _put_beside(model, [at], len(a), own, 0.0)
            there = model.origin.grafts[name]
        model.params[there.a], model.params[there.b] = a, b
    model.follow_origin()
    return tuple(found)


def _config(file: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What is known of a file's terms: from its metadata, or from PEFT's configuration beside it."""
    beside = os.path.join(os.path.dirname(file), CONFIG)
    try:
        if "config" in metadata:
            config = json.loads(metadata["config"])
        elif os.path.isfile(beside):
            with open(beside, encoding="utf-8") as text:
                config = json.load(text)
        else:
            config = {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the configuration cannot be read: {error}").at(file) from error
    if not isinstance(config, dict):
        raise CheckpointError("the configuration is no mapping").at(file)
    return config


Term = tuple[Projection, np.ndarray, np.ndarray, float]


def _terms(model: Model, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], alpha: float | None) -> dict[str, Term]:
    """Where each pair of factors belongs, in the weight's element type, and its alpha."""
    places = {p.name: p for p in model.origin.projections()} | {n: t.at for n, t in model.origin.grafts.items()}
    found: dict[str, Term] = {}
    for key, a in arrays.items():
        stem, kind, _ = key.removeprefix(PREFIX).rpartition(".lora_A.weight")
        if not kind:
            if not key.endswith(".lora_B.weight") or key.replace(".lora_B.", ".lora_A.") not in arrays:
                raise CheckpointError(f"{key!r} is no factor of a low-rank term")
            continue
        at, b = places.get(stem), arrays.get(key.replace(".lora_A.", ".lora_B."))
        if at is None:
            raise CheckpointError(f"the model has no weight for {stem!r}; there are {', '.join([*places][:20]) or 'none'}")
        if b is None or a.shape[1:] != at.operand or b.shape != (at.outputs, len(a), *[1] * (len(at.operand) - 1)):
            raise CheckpointError(f"the factors of {stem!r} do not fit its weight, which is {[at.outputs, *at.operand]}")
        own = config.get("alpha_pattern", {}).get(stem, config.get("lora_alpha")) if alpha is None else alpha
        if own is None:
            raise CheckpointError(f"neither the file nor {CONFIG} beside it says alpha; pass alpha=")
        there, dtype = model.origin.grafts.get(stem), model.params[at.weight].dtype
        if there is not None and (there.scale != float(own) / len(a) or model.params[there.a].shape != a.shape):
            raise CheckpointError(f"{stem!r} has a term of another rank or scale; merge_lora or load the model anew")
        found[stem] = at, a.astype(dtype), b.astype(dtype), float(own)
    return found


def replace_head(
    model: Model, output: str, features: int, *, name: str | None = None, init: str = "kaiming", seed: int = 0
) -> str:
    """Let `output` be a new linear layer of width `features`; see `Model.replace_head`. Returns the layer's name."""
    if output not in [spec.name for spec in model.outputs]:
        raise InputError(f"the model has no output {output!r}; there are {', '.join(s.name for s in model.outputs)}")
    if init not in INITIAL or features < 1:
        raise InputError(f"init={init!r}, features={features}: one of {', '.join(INITIAL)}, and at least 1")
    model.params.settle()
    taken = model.origin.features(output)
    rng = np.random.default_rng(seed)
    w = INITIAL[init](rng, taken.width, features).astype(taken.dtype)
    b = INITIAL[init](rng, taken.width, features)[:, 0].astype(taken.dtype)
    label = name or taken.layer or "head"
    model.origin.replace_head(output, taken, label, w if taken.matrix else np.ascontiguousarray(w.T), b)
    model.heads = (*model.heads, f"{label}.weight", f"{label}.bias")
    model.adaptations.append({"call": "replace_head", "output": output, "features": features, "name": label})
    model.follow_origin()
    return label


def readapt(model: Model, adaptations: Sequence[Mapping[str, Any]]) -> None:
    """Give a model the structure that another of the same file has been given; new weights start as they happen to.

    Raises CheckpointError where that cannot be known from the structure, or the model is of another file.
    """
    for adaptation in adaptations:
        arguments = dict(adaptation)
        call = arguments.pop("call", None)
        try:
            if call == "replace_head":
                replace_head(model, **arguments, init="zeros")
            elif call == "add_lora":
                places = {p.name: p for p in model.origin.projections()}
                _put_beside(model, [places[layer] for layer in arguments.pop("layers")], **arguments)
            elif call == "merge_lora":
                raise CheckpointError("low-rank terms were merged before the training; start from a model saved after that")
            else:
                raise CheckpointError(f"the model was changed by {call!r}, which this version does not know")
        except (InputError, KeyError, TypeError) as error:
            raise CheckpointError(f"the model cannot be changed as the trained one was: {error}") from error
