"""What a shard acknowledged against what its store holds, after it has ended in whatever way."""

from __future__ import annotations

from collections.abc import Iterable

from bench.shard_load.fleet import Fleet, Page
from cloud.storage import PatternStorage

READ_AT_ONCE = 1_000


def pairs_of(page: Page) -> set[tuple[int, int]]:
    """Row and moment of each title of a page."""
    return set(zip(page.rows, page.finished_ms, strict=True))


class Ledger:
    """Follows one store and the fleet that syncs with it. check() may be called again and again: it reads what is new.

    A request whose reply was lost may be in the store or not, but not in part.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._numbers = {device_id: number for number, device_id in enumerate(fleet.device_ids)}
        self._sequence = 0
        self._checked = [0] * len(fleet)
        self._stored: dict[int, set[tuple[int, int]]] = {}
        self._expected: dict[int, set[tuple[int, int]]] = {}
        self.lost = 0
        """Acknowledged syncs that the store does not hold."""
        self.checked = 0
        """Acknowledged syncs that were looked for."""
        self.unheard = 0
        """Syncs in the store whose acknowledgement never arrived, as the checks found them."""

    def check(self, storage: PatternStorage) -> list[str]:
        """What is wrong with the store, in words; nothing where it holds all that it must and nothing that was never sent."""
        faults, touched = [], set()
        while pages := storage.pages_after(self._sequence, READ_AT_ONCE):
            for page in pages:
                number = self._numbers.get(page.device_id)
                if number is None:
                    faults.append(f"page {page.sequence} is of a device that never synced")
                    continue
                touched.add(number)
                found = zip(page.rows.tolist(), page.finished_ms.tolist(), strict=True)
                self._stored.setdefault(number, set()).update(found)
            self._sequence = pages[-1].sequence
        touched.update(
            number
            for number, acknowledged in enumerate(self._fleet.acknowledged)
            if acknowledged > self._checked[number]
        )
        for number in sorted(touched):
            faults += self._check_device(storage, number)
        return faults

    def _check_device(self, storage: PatternStorage, number: int) -> Iterable[str]:
        fleet, stored = self._fleet, self._stored.get(number, set())
        expected = self._expected.setdefault(number, set())
        faults, lost = [], 0
        for sent in range(self._checked[number], fleet.acknowledged[number]):
            pairs = pairs_of(fleet.pages[fleet.page_number(number, sent)])
            expected |= pairs
            lost += not pairs <= stored
            self.checked += 1
        self._checked[number] = fleet.acknowledged[number]
        state = storage.device(fleet.device_ids[number])
        version, unheard = fleet.versions[number], pairs_of(fleet.next_page(number))
        found = 0 if state is None else state.local_version
        if found == fleet.next_version(number):
            self.unheard += 1
            expected = expected | unheard
            if not unheard <= stored:
                faults.append(f"device {number}: version {found} is stored without its titles")
        elif found != (version if fleet.acknowledged[number] else 0):
            faults.append(f"device {number}: expected version {version}, found {found}")
            lost = max(lost, found < version)
        if stored - expected:
            faults.append(
                f"device {number}: {len(stored - expected)} titles that it never sent, or that were not taken whole"
            )
        if lost:
            faults.append(f"device {number}: {lost} acknowledged syncs are not in the store")
        self.lost += lost
        return faults
