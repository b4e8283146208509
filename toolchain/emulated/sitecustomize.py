"""Imported by an emulated Python when it starts: its children are started through the emulator too.

A processor emulator in user mode cannot run a program that the machine's kernel does not know, so `sys.executable` is
the script that started this Python and not the Python inside the sysroot.
"""

import os
import sys

sys.executable = os.environ["OMEGA_EMULATED_PYTHON"]
