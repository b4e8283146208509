"""The committed limits of instruction counts: one file, one line a limit, and how a run compares with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

TOLERANCE = 0.02
"""Share by which a count may rise over its limit. Counts repeat within 0.05 %; the rest is for a compiler's moods."""
KERNELS, CALLS = "instructions_per_vector", "instructions"
"""The two metrics."""
COUNTED_WITH = "counted_with"


class LimitsError(Exception):
    """The file of limits cannot be read."""


@dataclass(frozen=True, slots=True)
class Count:
    """One number. name: a kernel (then isa is its instruction set and per what the number is for one of), or a call,
    whose repeats are calls on different input: span is from the least to the most of them, as a share of the number.
    """

    metric: str
    name: str
    cpu: str
    value: float
    isa: str | None = None
    per: str | None = None
    span: float = 0.0

    @property
    def key(self) -> str:
        """What tells it from others of its metric. Not the instruction set: should the dispatch take a lesser one, the
        count rises.
        """
        return f"{self.name} {self.cpu}"

    def line(self) -> dict[str, object]:
        """As the JSON lines have it."""
        if self.metric == CALLS:
            return {
                "metric": CALLS,
                "call": self.name,
                "cpu": self.cpu,
                "value": self.value,
                "span": round(self.span, 4),
            }
        fields = {"kernel": self.name, "isa": self.isa, "cpu": self.cpu, "value": self.value, "per": self.per}
        return {"metric": KERNELS} | fields


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a run says of the limits. risen fails the check, and so does what is missing on either side; fallen: over
    TOLERANCE below the limit."""

    risen: tuple[str, ...]
    missing: tuple[str, ...]
    fallen: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether no count rose and each has its limit."""
        return not self.risen and not self.missing


class Limits:
    """The accepted numbers by metric and key, and the tools that counted them."""

    def __init__(self, values: Mapping[str, Mapping[str, float]], counted_with: Mapping[str, str]) -> None:
        self.values = {metric: dict(values.get(metric, {})) for metric in (KERNELS, CALLS)}
        self.counted_with = dict(counted_with)

    @classmethod
    def read(cls, path: Path) -> Limits:
        """The limits of a file; none where it does not exist. Raises LimitsError for a file of another form."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls({}, {})
        except (OSError, ValueError) as error:
            raise LimitsError(
                f"{path}: expected a file of limits: {error}; restore it, or write it anew by --update"
            ) from error
        expected = {KERNELS: (int, float), CALLS: (int, float), COUNTED_WITH: (str,)}
        if not isinstance(content, dict) or content.keys() != expected.keys():
            raise LimitsError(f"{path}: expected an object of {', '.join(expected)}")
        for section, kinds in expected.items():
            entries = content[section]
            if not isinstance(entries, dict):
                raise LimitsError(f"{path}: {section}: expected an object, got {entries!r:.60}")
            for key, value in entries.items():
                sound = type(value) in kinds and (section == COUNTED_WITH or 0 < value < float("inf"))
                if not sound:
                    expected_value = "text" if section == COUNTED_WITH else "a number over 0"
                    raise LimitsError(f"{path}: {section}: {key}: expected {expected_value}, got {value!r:.60}")
        return cls({metric: content[metric] for metric in (KERNELS, CALLS)}, content[COUNTED_WITH])

    def write(self, path: Path) -> None:
        """Write the file, one limit a line, in order."""
        content = {COUNTED_WITH: self.counted_with} | {
            metric: dict(sorted(self.values[metric].items())) for metric in self.values
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def of(self, count: Count) -> float | None:
        """The limit of a count, or None."""
        return self.values[count.metric].get(count.key)

    def updated(self, counts: Iterable[Count], counted_with: Mapping[str, str], cpus: Iterable[str]) -> Limits:
        """These limits with the numbers of a run in the place of all of the same metrics and processors."""
        counts = list(counts)
        replaced = self._counted(counts, cpus)
        values = {
            metric: {key: value for key, value in self.values[metric].items() if (metric, key) not in replaced}
            | {count.key: count.value for count in counts if count.metric == metric}
            for metric in self.values
        }
        return Limits(values, counted_with)

    def _counted(self, counts: Iterable[Count], cpus: Iterable[str]) -> set[tuple[str, str]]:
        """Limits that a run would have counted: of its metrics and processors."""
        metrics, processors = {count.metric for count in counts}, set(cpus)
        return {
            (metric, key) for metric in metrics for key in self.values[metric] if key.rpartition(" ")[2] in processors
        }

    def compare(self, counts: Iterable[Count], cpus: Iterable[str]) -> Comparison:
        """What rose, fell, or is on one side only. cpus: the processors that were counted."""
        counts = list(counts)
        risen, missing, fallen = [], [], []
        for count in counts:
            limit = self.of(count)
            if limit is None:
                missing.append(f"{count.key}: {count.value:,} and no limit; accept it by --update")
            elif count.value > limit * (1 + TOLERANCE):
                risen.append(_change(count, limit))
            elif count.value < limit * (1 - TOLERANCE):
                fallen.append(_change(count, limit))
        uncounted = self._counted(counts, cpus) - {(count.metric, count.key) for count in counts}
        missing += [
            f"{key}: a limit and no count; if it is gone for good, say so by --update" for _, key in sorted(uncounted)
        ]
        return Comparison(tuple(risen), tuple(missing), tuple(fallen))


def _change(count: Count, limit: float) -> str:
    return f"{count.key}: {limit:,} -> {count.value:,} instructions ({(count.value / limit - 1) * 100:+.1f} %)"
