"""What is under test: the right copy of the package, and the instruction set that the processor deserves.

Where an installed wheel is tested, OMEGA_EXPECTED_PACKAGE names its folder and OMEGA_EXPECTED_ISA what must be chosen.
"""

from __future__ import annotations

import os
from pathlib import Path

import omega_edge
from omega_edge._simd import Kernels, _kernels, isa_names, kernels

PROJECT = Path(__file__).resolve().parent.parent


def test_the_package_under_test_is_the_one_meant():
    expected = Path(os.environ.get("OMEGA_EXPECTED_PACKAGE", PROJECT)).resolve()
    for module in (omega_edge, _kernels):
        assert Path(module.__file__).resolve().is_relative_to(expected / "omega_edge")


def test_the_best_instruction_set_is_chosen():
    expected = os.environ.get("OMEGA_EXPECTED_ISA", isa_names()[0])
    assert (kernels.isa, Kernels().isa) == (expected, expected)


def test_scalar_code_is_the_last_resort_and_always_there():
    assert isa_names()[-1] == "scalar" and Kernels("scalar").isa == "scalar"
