"""The native CPU kernels, and bytecode for editable installs. Everything else about the build stands in pyproject.toml.

The extension is optional: where no C compiler is at hand flamert installs without it, runs on NumPy kernels alone, and
`flamert info` says so.
"""

import compileall
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sources = Path("flamert/ops/cpu/native")


class BuildInPlace(build_ext):
    """Where the checkout itself is what gets imported, compile its modules once, as pip does for what it installs.

    Without bytecode `import flamert` takes twice as long, and some environments forbid Python to write any on import.
    """

    def run(self) -> None:
        super().run()
        if self.inplace:
            compileall.compile_dir("flamert", quiet=2)


setup(
    cmdclass={"build_ext": BuildInPlace},
    ext_modules=[
        Extension(
            "flamert.ops.cpu._native",
            sources=sorted(str(p) for p in sources.glob("*.c")),
            depends=sorted(str(p) for p in sources.glob("*.h")),
            extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"],
            extra_link_args=["-lpthread"],
            optional=True,
        )
    ],
)
