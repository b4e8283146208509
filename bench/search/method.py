"""What every way to search offers to the process that measures it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bench.search.data import K, SearchData

Search = Callable[[int], NDArray]
"""From a query's number to the rows found, best first."""


class Method(ABC):
    """One way to search one table. A subclass builds its index from the data and answers queries one by one.

    configurations: what is built, each tried in a process of its own; efforts: what can be set on a built index. The
    fastest that reaches the recall asked for is the method's best.

    A subclass that has a file has save(path), load(path), which returns the index ready to search, and adopt(loaded),
    which takes it in the place of building; one that grows has insert(number, count), which adds the query of that
    number as a new row after count others.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    """ours, exact float32, exact int8, refined (coarse codes, then better ones) or graph."""
    package: ClassVar[str | None] = None
    module: ClassVar[str | None] = None
    """What is imported before the building is measured."""
    configurations: ClassVar[tuple[dict, ...]] = ({},)
    efforts: ClassVar[tuple[dict, ...]] = ({},)
    slow_build: ClassVar[bool] = False
    """Whether the built index is kept between runs, with the seconds that it took."""
    most_rows: ClassVar[int | None] = None
    """Above so many rows the method is left out, and the report says so."""

    def __init__(self, data: SearchData, configuration: dict) -> None:
        self.data = data
        self.configuration = configuration

    @abstractmethod
    def build(self) -> None:
        """Makes the index of the data's rows."""

    @abstractmethod
    def searcher(self, effort: dict) -> Search:
        """The call that is timed."""

    @abstractmethod
    def instruction_set(self) -> str:
        """What the library reports, or what was found out about it."""

    def described(self) -> dict:
        """What else the report should say of the built index."""
        return {}

    def memory_bytes(self) -> int | None:
        """The library's own count of its index, where it has one."""
        return None


def best_of(scores: NDArray) -> NDArray[np.intp]:
    """The K highest (all, where there are fewer), best first: numpy's partition, then a sort of what it left."""
    if len(scores) <= K:
        return np.argsort(-scores)
    near = np.argpartition(scores, len(scores) - K)[len(scores) - K :]
    return near[np.argsort(-scores[near])]


def lowest_of(distances: NDArray) -> NDArray[np.intp]:
    """The K lowest, lowest first."""
    near = np.argpartition(distances, K - 1)[:K]
    return near[np.argsort(distances[near])]
