"""Which jobs a worker gets next: in order, in chunks of about `CHUNK_SECONDS`, within the limits on concurrency."""

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from concordant.core.errors import RewardError
from concordant.scoring.call import ASYNC_CALLS
from concordant.scoring.outcome import Outcome
from concordant.scoring.reward import Reward
from concordant.scoring.values import missing

CHUNK_SECONDS = 0.02
"""Work that is sent at a time: enough that messages cost little, little enough that all workers end together."""
CHUNK_JOBS = 1024
CHUNK_BYTES = 1 << 24
"""Inputs that are sent at a time, unless a single job has more."""
_FIRST = 4
"""Jobs of a reward's first chunk, when nothing is known about its speed."""
_DEEP = 4
"""Jobs of an async chunk for each call in flight, so that a slow call does not leave the others' places empty."""


class Ticket:
    """Jobs that were handed in together, and what became of them.

    Args:
        index: which reward.
        names: of the arguments.
        sizes: rows that each job judges.
    """

    def __init__(self, index: int, names: tuple[str, ...], sizes: Sequence[int]) -> None:
        self.index, self.names, self.sizes = index, names, sizes
        self.results: list[list[Outcome] | None] = [None] * len(sizes)
        self.left = len(sizes)
        self.error: RewardError | None = None
        self.ended = threading.Event()
        if not self.left:
            self.ended.set()

    def settle(self, place: int, outcomes: list[Outcome]) -> None:
        """Take the outcomes of a job; what comes first counts."""
        if self.results[place] is None:
            self.results[place] = outcomes
            self.left -= 1
            if not self.left:
                self.ended.set()

    def fail(self, error: RewardError) -> None:
        """Give up on all jobs that have no outcome."""
        if self.left:
            self.error = error
            self.ended.set()

    def wait(self) -> list[list[Outcome]]:
        """Wait for the outcomes of all jobs, in their order."""
        self.ended.wait()
        if self.error is not None:
            raise RewardError(str(self.error))
        return [outcomes for outcomes in self.results if outcomes is not None]


@dataclass(eq=False, slots=True)
class Work:
    """One job of a ticket."""

    ticket: Ticket
    place: int
    payload: bytes

    @property
    def size(self) -> int:
        """Rows it judges."""
        return self.ticket.sizes[self.place]

    @property
    def open(self) -> bool:
        """Whether somebody still waits for it."""
        return self.ticket.results[self.place] is None and self.ticket.error is None

    def settle(self, outcomes: list[Outcome]) -> None:
        """Hand in its outcomes."""
        self.ticket.settle(self.place, outcomes)

    def lose(self, reason: str, seconds: float) -> None:
        """Record that there is no value."""
        self.settle(missing(reason, self.size, seconds, 1))


@dataclass(eq=False)
class Chunk:
    """Jobs of one reward that a worker gets at a time."""

    index: int
    names: tuple[str, ...]
    slots: int
    """Calls in flight."""
    size: int
    jobs: dict[int, Work]
    """Those that have no outcome yet, by number."""
    begun: float = 0.0
    alone: bool = False
    """Whether its only job is done again by itself, after it was among those that may have ended a worker."""
    split: bool = False
    """Whether the jobs behind the running one were given to others."""


class Schedule:
    """The queues, one for each reward, served in turn."""

    def __init__(self, rewards: Sequence[Reward], workers: int) -> None:
        self.rewards, self.workers = rewards, workers
        self.asynchronous = [reward.is_async for reward in rewards]
        self.queues: list[deque[Work]] = [deque() for _ in rewards]
        self.alone: list[deque[Work]] = [deque() for _ in rewards]
        self.pace = [0.0] * len(rewards)
        self.number = self.turn = 0

    def add(self, work: Work) -> None:
        """Queue a job."""
        self.queues[work.ticket.index].append(work)

    def put_back(self, jobs: Sequence[Work], *, alone: bool = False) -> None:
        """Queue jobs that a worker did not get to, in front; `alone`: each in a chunk of its own."""
        for work in reversed(jobs):
            (self.alone if alone else self.queues)[work.ticket.index].appendleft(work)

    def take_all(self) -> list[Work]:
        """Empty the queues."""
        found = [work for queue in (*self.queues, *self.alone) for work in queue]
        for queue in (*self.queues, *self.alone):
            queue.clear()
        return found

    def next_chunk(self, running: Sequence[Chunk]) -> Chunk | None:
        """Return what a free worker should do while these chunks run; None if there is nothing it may do."""
        for offset in range(len(self.rewards)):
            index = (self.turn + offset) % len(self.rewards)
            chunk = self._chunk(index, sum(c.slots for c in running if c.index == index))
            if chunk is not None:
                self.turn = index + 1
                return chunk
        return None

    def _chunk(self, index: int, used: int) -> Chunk | None:
        reward, queue, alone = self.rewards[index], self.queues[index], self.alone[index]
        limit = reward.concurrency or (ASYNC_CALLS if self.asynchronous[index] else self.workers)
        if used >= limit or not (queue or alone):
            return None
        slots = min(limit - used, math.ceil(limit / self.workers)) if self.asynchronous[index] else 1
        if alone:
            chunk = self._fill(index, alone, 1, 1)
            if chunk is not None:
                chunk.alone = True
            return chunk
        return self._fill(index, queue, slots, self._size(index, slots, len(queue)))

    def _size(self, index: int, slots: int, queued: int) -> int:
        share = math.ceil(queued / self.workers)
        if self.rewards[index].rate:
            return min(share, slots)
        pace = self.pace[index]
        wanted = int(CHUNK_SECONDS / pace) if pace else _FIRST
        return max(1, min(share, max(wanted * slots, _DEEP * slots if slots > 1 else 1), CHUNK_JOBS))

    def _fill(self, index: int, queue: deque[Work], slots: int, size: int) -> Chunk | None:
        """Take jobs from a queue: those of one ticket, whose arguments have the same names."""
        jobs: dict[int, Work] = {}
        ticket: Ticket | None = None
        sent = 0
        while queue and len(jobs) < size and (ticket is None or queue[0].ticket is ticket):
            if jobs and sent + len(queue[0].payload) > CHUNK_BYTES:
                break
            work = queue.popleft()
            if work.open:
                ticket = work.ticket
                sent += len(work.payload)
                self.number += 1
                jobs[self.number] = work
        return Chunk(index, ticket.names, slots, len(jobs), jobs) if ticket is not None else None

    def learn(self, chunk: Chunk, seconds: float) -> None:
        """Note how long a chunk took that came to its end."""
        pace = seconds * chunk.slots / chunk.size
        self.pace[chunk.index] = (self.pace[chunk.index] + pace) / 2 if self.pace[chunk.index] else pace
