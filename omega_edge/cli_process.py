"""What a command owes the process that it runs in: standard streams that may be closed, full or gone, faults nobody
foresaw, and one line on standard error for each. Imports nothing of the product, so that `--help` stays quick."""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType
from typing import TextIO

from omega_edge.cli_codes import DEBUG_VARIABLE, EXIT_INTERRUPTED, EXIT_OTHER


def occupy_standard_streams() -> None:
    """Open descriptors 0 to 2 on /dev/null where they are closed.

    A file that is opened later would get the number, and what is printed would go into it. sys.stdin and sys.stdout
    stay None, for a verb that needs them to say so; without standard error there is nobody to say anything to.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")


def say_error(text: str) -> None:
    """One line on standard error, whatever the text holds; nothing if standard error takes nothing."""
    try:
        print(f"omega-edge: {' '.join(text.split())}", file=sys.stderr, flush=True)
    except OSError:
        let_go(sys.stderr)


def let_go(stream: TextIO) -> None:
    """Point the stream at nothing, so that the interpreter's last flush does not fail again and change the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def flush_output() -> OSError | None:
    """Write out what was printed; the error if it cannot be, after which the stream points at nothing."""
    failed = None
    for stream in (sys.stderr, sys.stdout):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            let_go(stream)
            failed = error if stream is sys.stdout else failed
    return failed


def end_on_fault(kind: type[BaseException], fault: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook of the command: one line and EXIT_OTHER, the traceback only with OMEGA_DEBUG=1."""
    flush_output()
    if issubclass(kind, KeyboardInterrupt):
        say_error("interrupted")
        raise SystemExit(EXIT_INTERRUPTED)
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(kind, fault, trace)
        raise SystemExit(EXIT_OTHER)
    say_error(f"internal fault: {kind.__name__}: {fault}; {DEBUG_VARIABLE}=1 shows where")
    raise SystemExit(EXIT_OTHER)
