"""The compiled modules; everything else about the project stands in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

HEADERS = [
    "ext/bytes.h",
    "ext/crc32c.h",
    "ext/record.h",
    "ext/querystring.h",
    "ext/json.h",
    "ext/redact.h",
    "ext/columns.h",
    "ext/core.pxd",
]

NAMES = ("_columns", "_frames", "_journal", "_json", "_peer", "_querystring", "_redact", "_short_path")


def extension(name: str) -> Extension:
    return Extension(
        f"kanalony.{name}",
        [f"ext/{name}.pyx"],
        include_dirs=["ext"],
        depends=HEADERS,
        define_macros=[("_GNU_SOURCE", None)],  # memmem
        # Two pointers that were just stored must not be loaded as one vector: that waits until both are in the cache.
        extra_compile_args=["-O3", "-fno-tree-slp-vectorize"],
    )


setup(
    ext_modules=cythonize(
        [extension(name) for name in NAMES],
        build_dir="build/cython",
        include_path=["ext"],  # where core.pxd is
    )
)
