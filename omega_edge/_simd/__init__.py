"""The C core: 8-bit codes, search, ranking. ``kernels`` is the best instruction set of this processor."""

from omega_edge._simd._kernels import Kernels, isa_names

kernels = Kernels()

__all__ = ["Kernels", "isa_names", "kernels"]
