"""Checks on single values, for messages and arguments: the value comes back, or ProtocolError says what was expected.

Each takes the name of the field for the error's text. None relies on a value to be small or sane.
"""

from __future__ import annotations

import enum
import re
import sys

from omega_edge.errors import ProtocolError

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _shown(value: object) -> str:
    """A value for an error message, short. Only values whose text is bounded are written out: the repr of a huge
    integer is itself an error, and that of a nested container costs as much as the container.
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"{value[:37]!r}... ({len(value)} characters)"
    if value is None or isinstance(value, (bool, float, enum.Enum)):
        return repr(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes"
    if isinstance(value, (tuple, list, dict, set, frozenset)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def refuse(field: str, expected: str, value: object) -> ProtocolError:
    """The error to raise for a value: what the field expected, and what came, shortened."""
    return ProtocolError(f"{field}: expected {expected}, got {_shown(value)}")


def check_integer(field: str, value: object, low: int, high: int) -> int:
    """The value if it is an int (not a bool) in [low, high]; else ProtocolError."""
    if type(value) is not int or not low <= value <= high:
        raise refuse(field, f"an integer from {low} to {high}", value)
    return value


def check_share(field: str, value: object) -> float:
    """The value as a float if it is a number in [0, 1]; else ProtocolError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise refuse(field, "a number from 0 to 1", value)
    return float(value) + 0.0  # + 0.0 turns -0.0 into 0.0: equal messages have equal bytes


def check_finite(field: str, value: object) -> float:
    """The value as a float if it is a finite number; else ProtocolError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refuse(field, "a finite number", value)
    if not -sys.float_info.max <= value <= sys.float_info.max:  # math.isfinite overflows on a huge int
        raise refuse(field, "a finite number", value)
    return float(value) + 0.0


def check_text(field: str, value: object, max_bytes: int) -> str:
    """The value if it is a str, not blank, of at most max_bytes UTF-8 bytes without control characters (C0, C1)."""
    # Most text is plain ASCII; for that these few checks say as much as all below, in a fifth of the time.
    plain = isinstance(value, str) and value.isascii() and value.isprintable()
    if plain and 0 < len(value) <= max_bytes and not value.isspace():
        return value
    if not isinstance(value, str) or not value or value.isspace():
        raise refuse(field, "text that is not blank", value)
    if len(value) > max_bytes:
        raise refuse(field, f"at most {max_bytes} bytes of UTF-8", value)
    try:
        size_bytes = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise refuse(field, "text that UTF-8 can hold (no lone surrogates)", value) from None
    if size_bytes > max_bytes:
        raise refuse(field, f"at most {max_bytes} bytes of UTF-8", value)
    if _CONTROL_CHARACTER.search(value):
        raise refuse(field, "text without control characters", value)
    return value


def are_plain(*texts: object) -> bool:
    """Whether all are str of printable ASCII that begin with neither nothing nor a blank: what most text is, and what
    check_text accepts if it is not too long. Three texts take as long as one of them in check_text.
    """
    for text in texts:
        if type(text) is not str or text[:1] <= " ":
            return False
    together = "".join(texts)
    return together.isascii() and together.isprintable()


def check_tuple(field: str, value: object, kind: type, max_items: int) -> tuple:
    """The value if it is a tuple of at most max_items instances of kind; else ProtocolError."""
    if not isinstance(value, tuple) or len(value) > max_items:
        raise refuse(field, f"a tuple of at most {max_items} {kind.__name__}", value)
    for item in value:
        if not isinstance(item, kind):
            raise refuse(field, f"only {kind.__name__} items", item)
    return value


def check_distinct(field: str, keys: list) -> None:
    """ProtocolError if a key (hashable) occurs twice."""
    if len(keys) != len(set(keys)):
        raise ProtocolError(f"{field}: expected each one once, got {len(keys) - len(set(keys))} of {len(keys)} twice")


def check_type(field: str, value: object, kind: type) -> None:
    """ProtocolError unless the value is an instance of kind."""
    if not isinstance(value, kind):
        raise refuse(field, f"a {kind.__name__}", value)


def check_optional(field: str, value: object, kind: type) -> None:
    """ProtocolError unless the value is None or an instance of kind."""
    if value is not None:
        check_type(field, value, kind)


def check_enum(field: str, value: object, kind: type[enum.Enum]) -> enum.Enum:
    """The member of kind, a str enumeration, that the value is or spells; else ProtocolError."""
    if isinstance(value, str):
        for member in kind:
            if value == member.value:
                return member
    raise refuse(field, "one of " + ", ".join(member.value for member in kind), value)
