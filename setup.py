"""The compiled modules; pyproject.toml has the rest of the project's metadata."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = Path("kanalony/core")


def extension(source: Path) -> Extension:
    return Extension(
        f"kanalony.core.{source.stem}",
        [str(source)],
        include_dirs=[str(CORE)],
        depends=sorted(str(path) for pattern in ("*.h", "*.pxd") for path in CORE.glob(pattern)),
        define_macros=[("_GNU_SOURCE", None)],  # memmem
        # No SLP vectorization: a vector load of two pointers that were just stored waits until both are in the cache.
        extra_compile_args=["-O3", "-fno-tree-slp-vectorize"],
    )


setup(
    ext_modules=cythonize(
        [extension(path) for path in sorted(CORE.glob("*.pyx"))],
        build_dir="build/cython",
        compiler_directives={"auto_pickle": False, "autotestdict": False},  # nothing that the stubs do not have
    )
)
