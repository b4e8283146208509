"""The codebook that this store's coarse vectors are encoded with: kept in the store from the first of them on.

A bundle brings a codebook, and a later bundle may bring another, or none. Coarse codes mean nothing without the
codebook that made them, so the store keeps its own, 251 kB written once, and goes on with it; where the bundle's is
the same, as it is until it is trained anew, that one is used, because it is mapped and not in RAM.
"""

from __future__ import annotations

from omega_edge.quantiser import CodebookFault, Quantiser
from omega_edge.store import Row, Store

_KEY = b"codebook"
PAYS_FROM_SKILLS = 1_000
"""A coarse vector saves some 340 bytes of its record, so 740 of them make good for the codebook. A household has some
dozens of skills, hundreds after years: there the codebook would cost more than it saves, and nothing becomes coarse."""


class Codebook:
    """The codebook in force. quantiser: None if there is none; then no vector becomes coarse. fault: why the one kept
    cannot be used, or None."""

    def __init__(self, store: Store, offered: Quantiser | None) -> None:
        """offered: the bundle's."""
        self.quantiser = offered
        self.fault: str | None = None
        self._kept = False
        self._unsaved = False
        record = store.get("meta", _KEY)
        if record is None:
            return
        if offered is None or offered.version != record[1]:
            try:
                self.quantiser = Quantiser.unpacked(record[2])
            except CodebookFault as fault:
                self.fault = str(fault)
                return
        self._kept = True

    def knows(self, version: int) -> bool:
        """Whether codes of this codebook version can be decoded."""
        return self.quantiser is not None and self.quantiser.version == version

    @property
    def kept(self) -> bool:
        """Whether it is, or with the next commit will be, in the store."""
        return self._kept or self._unsaved

    def pays(self, skills: int) -> bool:
        """Whether a memory of so many skills is to hold vectors coarse: there is a codebook, and it is kept already, or
        it is going to save more than it costs."""
        return self.quantiser is not None and (self.kept or skills >= PAYS_FROM_SKILLS)

    def adopt(self) -> None:
        """A vector is coarse by the codebook in force: keep that from the next commit on, if its record is not there,
        or no more."""
        self._unsaved |= not self._kept

    def rows(self) -> list[Row]:
        """What the store has to write."""
        return self.all_rows() if self._unsaved else []

    def saved(self) -> None:
        """rows() has been written."""
        self._kept |= self._unsaved
        self._unsaved = False

    def all_rows(self) -> list[Row]:
        """The record, if there is one."""
        if self.quantiser is None or not (self._kept or self._unsaved):
            return []
        return [("meta", _KEY, {1: self.quantiser.version, 2: self.quantiser.packed()})]
