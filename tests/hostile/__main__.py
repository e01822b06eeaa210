"""Tries every file of the corpus, each in a process of its own with little memory and time.

`python -m tests.hostile FOLDER [NAME...]` prints a JSON line for each: name, outcome, message, seconds, megabytes. With "-"
for the folder it reads paths of models, one a line, and answers each in the same way, without the name.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tests.hostile import HOSTILE, LEGAL

MEMORY = 3 << 30
"""Bytes of address space a case may add to what the interpreter has."""

SECONDS = 20


def attempt(path):
    """Load and run; "ok", or the error that came. Anything but a FlamertError is a "raw" one."""
    import flamert as fr

    try:
        loaded = fr.load(path, device="cpu")
        if any(np.prod([float(d) for d in spec.shape or () if isinstance(d, int)]) > 1e7 for spec in loaded.inputs):
            return "ok", "not run: nobody feeds inputs of this size"
        feeds = {spec.name: _feed(spec) for spec in loaded.inputs if spec.name not in loaded.origin.optional}
        loaded.run(feeds)
    except fr.errors.FlamertError as error:
        return type(error).__name__, str(error)
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    return "ok", ""


def _feed(spec):
    if spec.kind != "tensor":
        return []
    shape = [d if isinstance(d, int) else 2 for d in spec.shape or (2,)]
    return np.full(shape, "a", object) if spec.dtype.hasobject else np.ones(shape, spec.dtype)


def isolated(path):
    """`attempt` in a fork with a limit on memory and time; a crash and a hang are outcomes too."""
    read, written = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.alarm(SECONDS)
        try:
            outcome = json.dumps(attempt(path))
        except BaseException as error:
            outcome = json.dumps(("raw", repr(error)))
        os.write(written, outcome.encode()[:60_000])
        os._exit(0)
    os.close(written)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if not said:
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        outcome = ["hang" if killed == signal.SIGALRM else "crash", f"signal {killed}"]
    else:
        outcome = json.loads(said)
    return [*outcome, time.perf_counter() - start, usage.ru_maxrss >> 10]


def main(folder, names):
    import flamert.importers  # noqa: F401, imported once, before the forks

    if folder == "-":
        for line in sys.stdin:
            print(json.dumps(isolated(line.rstrip("\n"))), flush=True)
        return
    for name, build in {**HOSTILE, **LEGAL}.items():
        if names and name not in names:
            continue
        place = Path(folder) / name / "model"
        place.mkdir(parents=True)
        print(json.dumps([name, *isolated(build(place))]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
