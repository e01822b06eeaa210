"""Every error a user can meet; each message names the file, the ONNX node and the remedy. No other module defines one."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DeviceError",
    "FlamertError",
    "InputError",
    "InvalidModel",
    "NoGradient",
    "NonFiniteLoss",
    "OutOfMemory",
    "ShapeError",
    "UnsafeModel",
    "UnsupportedOp",
    "UnsupportedType",
]


class FlamertError(Exception):
    """Base of all errors that flamert raises on purpose.

    `where` is filled in by whoever knows it (the importer, a plan): the ONNX node and the file.
    """

    where: str | None = None

    def at(self, where: str | None) -> FlamertError:
        """Add the place of the fault, once: the innermost place wins. Returns self, so `raise error.at(…)` reads well."""
        if self.where is None and where:
            self.where = where
        return self

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} [at {self.where}]" if self.where else message


class InvalidModel(FlamertError, ValueError):
    """The file is not a well-formed ONNX model: truncated, cyclic, contradictory, or out of its declared bounds."""


class UnsafeModel(FlamertError, ValueError):
    """The model asks for something no model should: files outside its folder, or more memory or steps than the budget."""


class UnsupportedOp(FlamertError, NotImplementedError):
    """An operator, a version of it or one of its attributes has no converter here."""


class UnsupportedType(FlamertError, TypeError):
    """An operator does not take this element type."""


class ShapeError(FlamertError, ValueError):
    """Shapes, axes or indices that do not fit each other."""


class InputError(FlamertError, ValueError):
    """What was passed to `run` does not match the model's inputs."""


class NoGradient(FlamertError, ValueError):
    """A gradient was asked for through something that has none."""


class NonFiniteLoss(FlamertError, ArithmeticError):
    """Training met a NaN or an infinity."""


class CheckpointError(FlamertError, OSError):
    """A checkpoint could not be written, read or trusted."""


class OutOfMemory(FlamertError, MemoryError):
    """The host or the device has too little memory for a plan."""


class DeviceError(FlamertError, RuntimeError):
    """The device is missing, or failed."""


def translated(error: Exception, where: str | None, kind: type[FlamertError] = FlamertError) -> FlamertError:
    """A foreign exception as one of ours, with its place: what a model makes NumPy or a kernel raise, its user need not know.

    kind: what it becomes, unless it says that memory ran out.
    """
    if isinstance(error, MemoryError):
        return OutOfMemory(str(error) or "out of memory").at(where)
    return kind(f"{type(error).__name__}: {error}").at(where)
