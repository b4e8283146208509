"""Half-bytes: numbers too small for a byte each, written one after the other, the upper half of a byte first.

A number takes three bits a half-byte, least significant first, the top bit set on all but its last, in the shortest form;
one that can be negative is zigzagged first: 0, -1, 1, -2 … become 0, 1, 2, 3 …. An odd number of half-bytes is followed
by one of 0.
"""

from __future__ import annotations

from omega_edge.errors import ProtocolError

_HALVES = tuple((byte >> 4, byte & 15) for byte in range(256))


class HalfBytesWriter:
    """Collects half-bytes."""

    def __init__(self) -> None:
        self._halves = bytearray()

    def half(self, value: int) -> None:
        """One half-byte, 0 to 15."""
        self._halves.append(value)

    def number(self, value: int) -> None:
        """A number of any size, 0 or more."""
        while value > 7:
            self._halves.append(value & 7 | 8)
            value >>= 3
        self._halves.append(value)

    def signed(self, value: int) -> None:
        """A number of any size and either sign."""
        self.number(2 * value if value >= 0 else -2 * value - 1)

    def packed(self) -> bytes:
        """All that was written."""
        return bytes.fromhex(self._halves.hex()[1::2] + "0" * (len(self._halves) & 1))


class HalfBytesReader:
    """Reads half-bytes in order; ProtocolError, which names the field, for what the writer would not have written."""

    def __init__(self, name: str, column: bytes) -> None:
        self._name = name
        self._column = column
        self._halves = [half for byte in column for half in _HALVES[byte]]
        self._place = 0

    def half(self) -> int:
        """The next half-byte, 0 to 15."""
        if self._place == len(self._halves):
            raise ProtocolError(f"{self._name}: expected more half-bytes, the last value is cut off")
        value = self._halves[self._place]
        self._place += 1
        return value

    def number(self, max_value: int) -> int:
        """The next number, 0 to max_value."""
        value, shift = 0, 0
        while True:
            half = self.half()
            value |= (half & 7) << shift
            if value > max_value or (half == 0 and shift):
                raise ProtocolError(f"{self._name}: expected numbers up to {max_value} in shortest form, got another")
            if half < 8:
                return value
            shift += 3

    def signed(self, max_size: int) -> int:
        """The next number, -max_size to max_size."""
        code = self.number(2 * max_size)
        return code >> 1 if not code & 1 else -(code + 1 >> 1)

    def rest(self) -> bytes:
        """The whole bytes after the last number; ProtocolError unless a half-byte of 0 fills the byte that it ends in."""
        if self._place % 2 and self.half():
            raise ProtocolError(f"{self._name}: expected a half-byte of 0 after the last value, got another")
        return self._column[self._place // 2 :]
