"""Each kernel on an NVIDIA GPU against its floor: the time that its products or its memory traffic take at the device's best.

    python -m benchmarks.gpu_ops [--only NAME …] [--dtype bf16 …] [--json FILE] [--list]

Every row is a graph of one op, or of the few that are fused, planned as in a model, with operands that lie where they stay.
Several plans with memory of their own take turns, so that nothing is left in the cache from the turn before; all turns are one
CUDA graph, timed by events over its replays. The floor is bytes over the copy bandwidth, measured here first, or arithmetic
over 790 TFLOP/s for 16-bit types and half of that for TF32, whichever takes longer. Bytes count every operand and result once.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_op_passes import passes
from benchmarks.gpu_op_products import products
from benchmarks.gpu_op_work import DTYPES, Case, Work, normal
from flamert.passes.pipeline import prepare
from flamert.runtime.capture import Replay
from flamert.runtime.device import Device, device
from flamert.runtime.plan import Plan

FLOPS = {"bf16": 790e12, "fp16": 790e12, "fp32": 395e12}
"""What a large product reaches, a second."""

CACHE_BYTES = 128 << 20
"""What the plans that take turns should touch together: twice the largest cache, and some."""

RING, EXECUTIONS, SPAN = 8, 256, 2e-3
"""The most plans in turns; the most executions in one CUDA graph, and the seconds that they should take."""

REPLAYS, ROUNDS = 3, 15
"""Replays between two events, and how often that is measured."""

COPIED = 1 << 30
"""Bytes that are copied to measure bandwidth."""


def main() -> None:
    options = _arguments().parse_args()
    chosen = [case for case in (*products(), *passes()) if _wanted(case, options)]
    if options.list:
        print("\n".join(f"{case.op} | {case.shapes} | {case.dtype}" for case in chosen))
        return
    on = device("cuda", True)
    bandwidth = copy_bandwidth(on)
    rows: list[dict[str, Any]] = [{"op": "copy", "shapes": f"{COPIED >> 20} MiB", "bandwidth": bandwidth}]
    for case in chosen:
        row = {"op": case.op, "shapes": case.shapes, "dtype": case.dtype} | _tried(on, case, bandwidth)
        rows.append(row)
        shown = row.get("error") or f"{row['us']:.2f} µs, {row['fraction']:.2f} of the floor's {row['floor_us']:.2f}"
        print(f"{case.op} {case.shapes} {case.dtype}: {shown}", file=sys.stderr, flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1))
    show(rows, bandwidth)
    assert "torch" not in sys.modules
    sys.exit(any("error" in row for row in rows))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="rows whose op or shapes contain this; repeatable")
    parser.add_argument("--dtype", action="append", choices=sorted(DTYPES), help="repeatable; default all")
    parser.add_argument("--list", action="store_true", help="print the rows there are, and measure none")
    parser.add_argument("--json", help="file for the rows")
    return parser


def _wanted(case: Case, options: argparse.Namespace) -> bool:
    named = not options.only or any(word in f"{case.op} {case.shapes}" for word in options.only)
    return named and (not options.dtype or case.dtype in options.dtype)


def _tried(on: Device, case: Case, bandwidth: float) -> dict[str, Any]:
    """The row's numbers; or what went wrong, which leaves the others as they are."""
    try:
        return measured(on, case, bandwidth)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        gc.collect()
        on.xp.get_default_memory_pool().free_all_blocks()


def measured(on: Device, case: Case, bandwidth: float) -> dict[str, Any]:
    """Time, floor and kernels of one row."""
    work = case.make(DTYPES[case.dtype])
    by_memory, by_products = work.traffic / bandwidth, work.flops / FLOPS[case.dtype]
    floor = max(by_memory, by_products)
    plans = list(ring(on, work))
    turns = max(1, min(EXECUTIONS, round(SPAN / floor)) // len(plans))
    calls = [call for plan in plans for call in calls_of(plan)] * turns
    replay = Replay(on, calls, plans[0].obstacle)

    def execute() -> None:
        if not replay():
            for call in calls:
                call()

    seconds = timed(on, execute) / (turns * len(plans))
    row = {
        "us": seconds * 1e6,
        "floor_us": floor * 1e6,
        "fraction": floor / seconds,
        "bound": "products" if by_products > by_memory else "memory",
        "kernels": [step.node.op.name for step in plans[0].steps],
        "plans": len(plans),
    }
    return row if replay.recorded else row | {"not recorded": replay.obstacle}


def ring(on: Device, work: Work) -> Iterator[Plan]:
    """Plans of the same work, each with operands and memory of its own: as many as it takes to fill the cache."""
    contents = {v: work.given.get(v) for v in work.inputs}
    arrays = {v: on.upload(normal(v.shape, v.dtype) if array is None else array) for v, array in contents.items()}
    touched = sum(v.type.nbytes for v in (*work.inputs, *work.outputs))
    for _ in range(max(1, min(RING, -(-CACHE_BYTES // max(1, touched))))):
        cache: dict[Any, Any] = {}
        state = {v: on.owned(array) for v, array in arrays.items()}
        updates = {i: state[v] for i, v in work.updates.items()}
        yield Plan(prepare(work.graph, True, on, cache), on, cache=cache, hot=True, state=state, updates=updates)


def calls_of(plan: Plan) -> tuple[Callable[[], Any], ...]:
    """A plan's kernel calls, bound to its memory."""
    [arena] = plan._arenas._idle
    calls: tuple[Callable[[], Any], ...] = arena.bound[plan].calls
    return calls


def timed(on: Device, call: Callable[[], Any]) -> float:
    """Seconds of a call on the device: the median of many. The first two calls only prepare."""
    cuda = on.xp.cuda
    start, end = cuda.Event(), cuda.Event()
    for _ in range(4):
        call()
    on.synchronize()
    found = []
    for _ in range(ROUNDS):
        start.record()
        for _ in range(REPLAYS):
            call()
        end.record()
        end.synchronize()
        found.append(cuda.get_elapsed_time(start, end) / 1e3 / REPLAYS)
    return statistics.median(found)


def copy_bandwidth(on: Device) -> float:
    """Bytes read and written a second when one large array is copied into another."""
    source = on.upload(normal((COPIED // 4,), DTYPES["fp32"]))
    target = on.owned(source)
    return 2 * COPIED / timed(on, lambda: on.xp.copyto(target, source))


def show(rows: list[dict[str, Any]], bandwidth: float) -> None:
    """The table, and what went wrong."""
    from rich.console import Console
    from rich.table import Table

    table = Table("op", "shapes", "dtype", "µs", "floor µs", "fraction", "bound by", "kernels")
    for row in rows:
        if "us" in row:
            numbers = f"{row['us']:.2f}", f"{row['floor_us']:.2f}", f"{row['fraction']:.2f}"
            kernels = ", ".join(row["kernels"]) if len(row["kernels"]) < 5 else f"{len(row['kernels'])} kernels"
            table.add_row(row["op"], row["shapes"], row["dtype"], *numbers, row["bound"], kernels)
    console = Console(width=170)
    console.print(table)
    console.print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    for row in rows:
        if note := row.get("error") or row.get("not recorded"):
            print(f"{row['op']} {row['shapes']} {row['dtype']}: {note}")


if __name__ == "__main__":
    main()
