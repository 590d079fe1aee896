"""What scores look like, and how two scorings of the same rollouts agree: summed up as a stream, in constant memory."""

import heapq
import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

SAMPLE = 100_000
"""Rows that a rank correlation is computed from; with more, a sample (standard error at most 0.003)."""
WORST = 5
_LARGEST = 256  # members of a group whose pairs are compared
_FASTEST, _FINE = 1e-7, 100.0  # seconds of the first bucket, buckets for a factor of e


class Moments:
    """Count, mean and standard deviation (n - 1) of a stream, by pairwise update in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: Numbers) -> None:
        """Take finite values."""
        if not values.size:
            return
        mean, total = float(values.mean()), self.count + values.size
        apart = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + apart**2 * self.count * values.size / total
        self.mean += apart * values.size / total
        self.count = total

    @property
    def sd(self) -> float | None:
        """Standard deviation; None for fewer than two values."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else None


class Latency:
    """Quantiles of durations, to one per cent, from counts in logarithmic buckets."""

    def __init__(self) -> None:
        self.counts = np.zeros(2600, dtype=np.int64)

    def add(self, seconds: Numbers) -> None:
        """Take durations in seconds."""
        bucket = np.floor(np.log(np.maximum(seconds, _FASTEST) / _FASTEST) * _FINE).astype(np.int64)
        self.counts += np.bincount(np.minimum(bucket, self.counts.size - 1), minlength=self.counts.size)

    def quantile(self, share: float) -> float | None:
        """Return the duration that this share of calls did not exceed; None without calls."""
        total = int(self.counts.sum())
        if not total:
            return None
        bucket = int(np.searchsorted(np.cumsum(self.counts), share * total))
        return float(_FASTEST * math.exp((bucket + 0.5) / _FINE))


class Sample:
    """A uniform sample of pairs that depends on the rows only, not on how the stream was cut."""

    def __init__(self, size: int = SAMPLE) -> None:
        self.size, self.seen = size, 0
        self.held = np.empty((0, 3))
        self._new: list[Numbers] = []
        self._waiting = 0

    def add(self, rows: Rows, x: Numbers, y: Numbers) -> None:
        """Offer pairs."""
        self.seen += rows.size
        self._new.append(np.column_stack([_random(rows), x, y]))
        self._waiting += rows.size
        if self._waiting > self.size // 2:
            self._trim()

    def _trim(self) -> None:
        self.held = np.concatenate([self.held, *self._new])
        self._new, self._waiting = [], 0
        if len(self.held) > self.size:
            self.held = self.held[np.argpartition(self.held[:, 0], self.size)[: self.size]].copy()

    def spearman(self) -> float | None:
        """Return the rank correlation (ties share their mean rank); None where one side is constant."""
        self._trim()
        return spearman(self.held[:, 1], self.held[:, 2])


def _random(rows: Rows) -> Numbers:
    """A number in [0, 1) for every row number (splitmix64)."""
    z = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / float(1 << 53)


def spearman(x: Numbers, y: Numbers) -> float | None:
    """Return the correlation of ranks; None for fewer than two pairs or where one side is constant."""
    if x.size < 2 or x.min() == x.max() or y.min() == y.max():
        return None
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / math.sqrt((a @ a) * (b @ b)))


def _ranks(x: Numbers) -> Numbers:
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


class Tally:
    """All that is reported about one reward."""

    def __init__(self) -> None:
        self.rows, self.cached, self.called = 0, 0, 0
        self.reasons: Counter[str] = Counter()
        self.values, self.latency = Moments(), Latency()
        self.groups, self.tied = 0, 0
        self.agreement: Agreement | None = None

    def add(self, values: Numbers, seconds: Numbers, attempts: Rows, cached: Rows, groups: Rows) -> None:
        """Take consecutive rows, groups whole.

        Args:
            values: score of each row, NaN where missing [b].
            seconds: duration of its last attempt [b].
            attempts: attempts made for it, 0 for a result that was there already [b].
            cached: 1 where the result came from the cache [b].
            groups: id of its group; members stand together [b].
        """
        judged = ~np.isnan(values)
        self.rows += values.size
        self.values.add(values[judged])
        self.latency.add(seconds[attempts > 0])
        self.called += int((attempts > 0).sum())
        self.cached += int(cached.sum())
        starts, sizes = _runs(groups[judged])
        several = sizes > 1
        if several.any():
            low = np.minimum.reduceat(values[judged], starts)
            high = np.maximum.reduceat(values[judged], starts)
            self.groups += int(several.sum())
            self.tied += int((several & (low == high)).sum())

    def compare(self, first: int, new: Numbers, old: Numbers, groups: Rows) -> None:
        """Take old scores of the same rows; `first` is the number of the first row in the file."""
        if self.agreement is None:
            self.agreement = Agreement()
        self.agreement.add(first, new, old, groups)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "rows": self.rows,
            "scored": self.values.count,
            "missing": dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))),
            "mean": self.values.mean if self.values.count else None,
            "sd": self.values.sd,
            "groups": self.groups,
            "tied_groups": self.tied / self.groups if self.groups else None,
            "called": self.called,
            "cached": self.cached,
            "seconds_p50": self.latency.quantile(0.5),
            "seconds_p99": self.latency.quantile(0.99),
            "agreement": self.agreement.as_json() if self.agreement else None,
        }


class Agreement:
    """How new scores agree with old ones."""

    def __init__(self) -> None:
        self.both, self.equal = 0, 0
        self.only_new, self.only_old = 0, 0
        self.gap = Moments()
        self.sample = Sample()
        self.pairs, self.same, self.reversed = 0, 0, 0
        self.worst: list[tuple[float, int, float, float]] = []

    def add(self, first: int, new: Numbers, old: Numbers, groups: Rows) -> None:
        """Take consecutive rows, groups whole; NaN is missing."""
        has_new, has_old = ~np.isnan(new), ~np.isnan(old)
        both = has_new & has_old
        self.only_new += int((has_new & ~has_old).sum())
        self.only_old += int((has_old & ~has_new).sum())
        self.both += int(both.sum())
        rows = first + np.flatnonzero(both)
        new, old = new[both], old[both]
        equal = np.isclose(new, old, rtol=1e-6, atol=1e-9)  # scores of a run are stored as float32
        self.equal += int(equal.sum())
        self.gap.add(new - old)
        self.sample.add(rows, new, old)
        self._order(new, old, groups[both])
        self._keep_worst(rows[~equal], new[~equal], old[~equal])

    def _order(self, new: Numbers, old: Numbers, groups: Rows) -> None:
        starts, sizes = _runs(groups)
        for size in np.unique(sizes[sizes > 1]):
            members = starts[sizes == size][:, None] + np.arange(min(int(size), _LARGEST))
            left, right = np.triu_indices(members.shape[1], 1)
            for part in np.array_split(members, max(1, members.shape[0] * left.size // 1_000_000)):
                before = np.sign(old[part][:, left] - old[part][:, right])
                after = np.sign(new[part][:, left] - new[part][:, right])
                self.pairs += int((before != 0).sum())
                self.same += int((before * after > 0).sum())
                self.reversed += int((before * after < 0).sum())

    def _keep_worst(self, rows: Rows, new: Numbers, old: Numbers) -> None:
        if not rows.size:
            return
        gap = np.abs(new - old)
        order = np.lexsort((rows, -gap))[:WORST]
        for at in order:
            heapq.heappush(self.worst, (float(gap[at]), -int(rows[at]), float(new[at]), float(old[at])))
        self.worst = heapq.nlargest(WORST, self.worst)
        heapq.heapify(self.worst)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data; `order_kept` is of the pairs in a group that the old scores told apart."""
        worst = sorted(self.worst, reverse=True)
        return {
            "both": self.both,
            "only_new": self.only_new,
            "only_old": self.only_old,
            "equal": self.equal / self.both if self.both else None,
            "mean_difference": self.gap.mean if self.both else None,
            "spearman": self.sample.spearman(),
            "spearman_rows": min(self.both, self.sample.size),
            "pairs": self.pairs,
            "order_kept": self.same / self.pairs if self.pairs else None,
            "order_reversed": self.reversed / self.pairs if self.pairs else None,
            "differ_most": [
                {"row": -row, "new": new, "old": old, "difference": new - old} for _, row, new, old in worst
            ],
        }


def _runs(groups: Rows) -> tuple[Rows, Rows]:
    """Return start and length of every run of equal ids."""
    if not groups.size:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    return starts, np.diff(np.concatenate([starts, [groups.size]]))
