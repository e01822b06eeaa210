"""Tables of op cases, one module per family; each has a list CASES of `flamert.testing.Case`."""

import importlib
import pkgutil

CASES = [
    case
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name)
    for case in importlib.import_module(f"{__name__}.{module.name}").CASES
]
