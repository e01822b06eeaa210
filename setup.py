"""The native CPU kernels. Everything else about the build stands in pyproject.toml.

The extension is optional: where no C compiler is at hand flamert installs without it, runs on NumPy kernels alone, and
`flamert info` says so.
"""

from pathlib import Path

from setuptools import Extension, setup

sources = Path("flamert/ops/cpu/native")

setup(
    ext_modules=[
        Extension(
            "flamert.ops.cpu._native",
            sources=sorted(str(p) for p in sources.glob("*.c")),
            depends=sorted(str(p) for p in sources.glob("*.h")),
            extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"],
            extra_link_args=["-lpthread"],
            optional=True,
        )
    ]
)
