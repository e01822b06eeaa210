"""onnxruntime's option objects, as far as they mean something here. What has no effect is logged once it is used."""

from __future__ import annotations

import enum
import logging
from typing import Any

from flamert.errors import UnsupportedOp
from flamert.threads import set_threads

log = logging.getLogger("flamert")


class GraphOptimizationLevel(enum.IntEnum):
    """How hard to optimise. Graphs here are always optimised; the level is accepted so that programs need no change."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(enum.IntEnum):
    """Nodes run one after the other in both modes."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class _Entries:
    """String settings by key."""

    def __init__(self) -> None:
        self._entries: dict[str, str] = {}

    def _get(self, key: str) -> str:
        try:
            return self._entries[key]
        except KeyError:
            raise KeyError(f"no config entry {key!r}") from None


class SessionOptions(_Entries):
    """What `InferenceSession` takes as `sess_options`; onnxruntime's own object will do as well.

    intra_op_num_threads: threads of the native kernels and of BLAS, for the whole process; 0 leaves them as they are.
    log_severity_level: 0 (everything) to 4 (fatal), of the logger "flamert"; −1 leaves it as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 0
        self.inter_op_num_threads = 0
        self.log_severity_level = -1
        self.log_verbosity_level = 0
        self.logid = ""
        self.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
        self.execution_mode = ExecutionMode.ORT_SEQUENTIAL
        self.enable_cpu_mem_arena = True
        self.enable_mem_pattern = True
        self.enable_mem_reuse = True
        self.enable_profiling = False
        self.profile_file_prefix = "onnxruntime_profile_"
        self.optimized_model_filepath = ""
        self.use_deterministic_compute = False
        self.use_per_session_threads = True
        self.free_dimensions: dict[str, int] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Keep a setting; none has an effect here."""
        self._entries[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """A setting that was added."""
        return self._get(key)

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Fix a symbolic dimension: inputs of another size are refused."""
        self.free_dimensions[name] = size

    def register_custom_ops_library(self, path: str) -> None:
        """Always refused: compiled operators of onnxruntime cannot be called from here."""
        raise UnsupportedOp(f"{path}: custom operator libraries are not supported; write a converter (docs/adding-an-op.md)")


class RunOptions(_Entries):
    """What `run` takes as `run_options`; nothing in it changes a result."""

    def __init__(self) -> None:
        super().__init__()
        self.log_severity_level = -1
        self.log_verbosity_level = 0
        self.logid = ""
        self.only_execute_path_to_fetches = False
        self.terminate = False

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Keep a setting."""
        self._entries[key] = value

    def get_run_config_entry(self, key: str) -> str:
        """A setting that was added."""
        return self._get(key)


_SEVERITY = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


def apply(options: Any) -> None:
    """Do what a SessionOptions asks of the process, and log what it asks in vain."""
    severity = getattr(options, "log_severity_level", -1)
    if 0 <= severity < len(_SEVERITY):
        log.setLevel(_SEVERITY[severity])
    threads = getattr(options, "intra_op_num_threads", 0)
    if threads > 0:
        set_threads(threads)
    if getattr(options, "enable_profiling", False):
        log.warning("enable_profiling has no effect; use Model.profile or `flamert profile`")
    if getattr(options, "optimized_model_filepath", ""):
        log.warning("optimized_model_filepath has no effect: optimised graphs are not written as ONNX")
