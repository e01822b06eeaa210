"""Things that have options of their own on the command line: `--optimizer sgd:momentum=0.9,nesterov=true`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from flamert.errors import InputError

COMMA = re.compile(r",(?![^\[]*\])")
"""Between options; the elements of a list in brackets belong together."""


def made(option: str, text: str, makers: Mapping[str, Callable[..., Any]], **known: Any) -> Any:
    """What `text`, a name with options behind a colon, stands for among `makers`.

    known: arguments for those that take them; options that are given go first. Raises InputError that says what there is.
    """
    name, _, rest = text.partition(":")
    if name not in makers:
        raise InputError(f"{option} {text!r}: choose one of {', '.join(makers)}")
    signature = inspect.signature(makers[name])
    given = dict(_pair(option, text, part) for part in COMMA.split(rest) if part)
    if unknown := [key for key in given if key not in signature.parameters]:
        has = ", ".join(signature.parameters) or "none"
        raise InputError(f"{option} {text!r}: {name} has no option {unknown[0]!r}; its options are {has}")
    arguments = {key: value for key, value in known.items() if key in signature.parameters} | given
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InputError(f"{option} {text!r}: {error}; write {name}:key=value") from error
    try:
        return makers[name](**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{option} {text!r}: {error}") from error


def _pair(option: str, text: str, part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals:
        raise InputError(f"{option} {text!r}: options are written as key=value, which {part!r} is not")
    try:
        found = json.loads(value)
    except ValueError:
        found = value
    return key.strip(), tuple(found) if isinstance(found, list) else found
