"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.brains import bundle, opened  # noqa: F401  fixtures of whole brains

# Before any test module imports onnxruntime by itself: it reports its use from its import on unless this is set.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Tests interrupt programs that they start. Where a script started this one in the background, interruptions are ignored,
# and programs inherit that; here they do not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The text model, at the place where ./run has it; made, or made anew, unless it is the exporter's present one.

    OMEGA_TEST_MODEL names a folder with a finished one instead, where the exporter's packages are not installed.
    """
    if finished := os.environ.get("OMEGA_TEST_MODEL"):
        return Path(finished)
    from toolchain.export_model import export_model  # here, because onnx is slow to import and few tests need it

    out = PROJECT / "build" / "model"
    export_model(out)
    return out
