"""Memory that workers share with their parent: what each one is doing, and when calls of a reward may start.

It can be read while the worker hangs in C with the interpreter locked, and after it was killed.
"""

import fcntl
import mmap
import os
import struct
import tempfile
import time
from typing import NamedTuple

_MARK = struct.Struct("<qdd")
_NEXT = struct.Struct("<d")
_WIDTH = 64
_REVOKED, _COUNT = 3, 4  # words of eight bytes behind the mark
_TRIES = 1000
IDLE = -1


class Mark(NamedTuple):
    """What a worker is doing."""

    job: int
    """Number of the job whose code runs, or `IDLE`."""
    start: float
    """When its attempt began (`time.monotonic`, one clock for all processes)."""
    quiet: float
    """Until when the worker may be silent while no job's code runs; a worker that is silent for longer is stuck."""


class Shared:
    """The memory: a mark for each worker, and the next start of each reward that has a rate limit."""

    def __init__(self, file: int, rewards: int) -> None:
        self.file, self.rewards = file, rewards
        self.memory = mmap.mmap(file, 0)
        self.words = memoryview(self.memory).cast("q")  # one word is read and written at once
        self.last: dict[int, Mark] = {}

    @classmethod
    def make(cls, workers: int, rewards: int) -> "Shared":
        """Make it, in a file without a name."""
        with tempfile.TemporaryFile() as file:
            file.truncate(_WIDTH * (workers + rewards))
            return cls(os.dup(file.fileno()), rewards)

    def close(self) -> None:
        """Give it back."""
        self.words.release()
        self.memory.close()
        os.close(self.file)

    def mark(self, worker: int, job: int, start: float, quiet: float) -> None:
        """Write what a worker is doing. The count is odd meanwhile, since a reader may look between any two bytes."""
        place = self._place(worker)
        count = self.words[place + _COUNT] | 1  # odd already if a worker was killed while it wrote
        self.words[place + _COUNT] = count
        _MARK.pack_into(self.memory, 8 * place, job, start, quiet)
        self.words[place + _COUNT] = count + 1

    def read(self, worker: int) -> Mark:
        """Read what a worker is doing; if it was stopped or killed while it wrote, what it did before."""
        place = self._place(worker)
        for _ in range(_TRIES):
            count = self.words[place + _COUNT]
            mark = Mark._make(_MARK.unpack_from(self.memory, 8 * place))
            if count % 2 == 0 and count == self.words[place + _COUNT]:
                self.last[worker] = mark
                return mark
        return self.last.get(worker, Mark(IDLE, 0.0, time.monotonic()))

    def revoke(self, worker: int, chunk: int) -> None:
        """Tell a worker to do no further job of a chunk, named by the number of a job in it."""
        self.words[self._place(worker) + _REVOKED] = chunk

    def revoked(self, worker: int) -> int:
        """Return what `revoke` wrote last."""
        return self.words[self._place(worker) + _REVOKED]

    def _place(self, worker: int) -> int:
        """Where the words of a worker begin."""
        return _WIDTH // 8 * (self.rewards + worker)

    def take_start(self, reward: int, rate: float) -> float:
        """Take the next start that `rate` calls a second allow over all workers; return the seconds until then.

        The lock belongs to the process, so that it is free again when its holder was killed.
        """
        fcntl.lockf(self.file, fcntl.LOCK_EX, 1, reward)
        try:
            now = time.monotonic()
            start = max(now, *_NEXT.unpack_from(self.memory, _WIDTH * reward))
            _NEXT.pack_into(self.memory, _WIDTH * reward, start + 1 / rate)
        finally:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, reward)
        return start - now
