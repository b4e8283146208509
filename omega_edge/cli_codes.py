"""What the command's exit codes mean, and which error ends with which."""

from __future__ import annotations

from omega_edge import errors

DEBUG_VARIABLE = "OMEGA_DEBUG"
"""1: an internal fault shows its traceback."""

EXIT_OK = 0
EXIT_FOUND_FAULT = 1
EXIT_USAGE = 2
EXIT_DATA = 65
EXIT_NO_INPUT = 66
EXIT_UNAVAILABLE = 69
EXIT_OTHER = 70
EXIT_CANNOT_CREATE = 73
EXIT_IO = 74
EXIT_BUSY = 75
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

EXIT_BY_ERROR: tuple[tuple[type[Exception], int], ...] = (
    (errors.StoreBusyError, EXIT_BUSY),
    (errors.StoreReadOnlyError, EXIT_CANNOT_CREATE),
    (errors.StoreFullError, EXIT_IO),
    (errors.StoreDamagedError, EXIT_DATA),
    (errors.StoreError, EXIT_IO),
    (errors.ModelUnavailable, EXIT_UNAVAILABLE),
    (errors.CatalogError, EXIT_DATA),
    (errors.SignatureError, EXIT_DATA),
    (errors.DatasetError, EXIT_DATA),
    (errors.LineageError, EXIT_DATA),
    (errors.ProtocolError, EXIT_DATA),
    (errors.ConfigError, EXIT_CONFIG),
    (errors.OmegaError, EXIT_OTHER),
    (FileNotFoundError, EXIT_NO_INPUT),
    (OSError, EXIT_IO),
)
"""The first line whose type the error has gives the exit code, so the special types stand before the general."""

EXIT_CODES_TEXT = """exit codes:
    0  done
    1  doctor found a fault
    2  the command line is wrong
   65  input, catalogue or store is damaged or not acceptable
   66  a file that was named is missing
   69  the text model, the shard, or something that the verb cannot do without, is not there
   70  an internal fault; OMEGA_DEBUG=1 shows its traceback
   73  the storage folder cannot be written
   74  reading or writing failed, or the disk is full
   75  another process holds the store, or the shard asks to wait; try again later
   78  an option is unknown or its value is not acceptable
  130  interrupted (Ctrl-C); 141: the reader of the output went away
"""


def exit_code_of(error: Exception) -> int:
    """Exit code for an error, by EXIT_BY_ERROR."""
    return next(code for kind, code in EXIT_BY_ERROR if isinstance(error, kind))
