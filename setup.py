"""Builds the C core, omega_edge._simd._kernels, as one abi3 extension for every CPython from 3.11 on.

No file needs flags of its own: each instruction set's C file names its target by pragma and is empty on other machines.
"""

from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

SIMD = "omega_edge/_simd"

# What Cython generates begins with an underscore; public.c is for programs without Python.
CORE = [path for path in sorted(glob(f"{SIMD}/[!_]*.c")) if not path.endswith("/public.c")]

COMPILE_FLAGS = [
    "-O3",
    "-g0",
    "-std=c11",
    "-Wall",
    "-fvisibility=hidden",  # other vector libraries in the process must neither see nor replace our symbols
    "-ffp-contract=off",  # a fused multiply-add rounds once instead of twice: scores would differ between machines
    "-fno-math-errno",  # sqrt becomes the instruction; it stays correctly rounded
]

kernels = Extension(
    "omega_edge._simd._kernels",
    sources=[f"{SIMD}/_kernels.pyx", *CORE],
    depends=[path for ending in ("h", "pxd", "pxi") for path in sorted(glob(f"{SIMD}/*.{ending}"))],
    include_dirs=[SIMD],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    extra_compile_args=COMPILE_FLAGS,
    py_limited_api=True,
)

setup(
    ext_modules=cythonize([kernels], language_level=3),
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
