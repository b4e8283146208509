"""Counts the instructions that the kernels and the calls of a television take on ARM, under an emulator, exactly."""
