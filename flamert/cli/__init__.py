"""`flamert …`: one module per command; this one gathers them and turns every error into one clear line."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from flamert.cli import bench, checkpoint, export, finetune, info, ops, profile, run, verify, view
from flamert.errors import FlamertError


class App(typer.Typer):
    """The command line. Errors that a user can do something about are one line on stderr and a non-zero exit."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("standalone_mode", False)
        try:
            code = super().__call__(*args, **kwargs)
        except (FlamertError, OSError, ImportError) as error:
            _fail(str(error), 1)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except Exception as error:
            # Typer may bring its own copy of click, so its usage errors are known by what they can do.
            if not hasattr(error, "format_message"):
                raise
            if not error.format_message():  # no command was given, and the help is on the screen already
                sys.exit(2)
            _fail(f"{error.format_message()} (see --help)", getattr(error, "exit_code", 2))
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print("flamert: error: " + " ".join(message.split()), file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)


app = App(
    name="flamert",
    help="Load, run, check, measure and fine-tune ONNX models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _module in (info, run, verify, bench, profile, view, ops, finetune, export, checkpoint):
    app.command(_module.__name__.rpartition(".")[2])(_module.command)


def main() -> None:
    """For `python -m flamert`."""
    app(prog_name=os.path.basename(sys.argv[0]) if not sys.argv[0].endswith("__main__.py") else "flamert")
