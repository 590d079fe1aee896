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
_REVOKED = struct.Struct("<q")
_NEXT = struct.Struct("<d")
_WIDTH = 64
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

    @classmethod
    def make(cls, workers: int, rewards: int) -> "Shared":
        """Make it, in a file without a name."""
        with tempfile.TemporaryFile() as file:
            file.truncate(_WIDTH * (workers + rewards))
            return cls(os.dup(file.fileno()), rewards)

    def close(self) -> None:
        """Give it back."""
        self.memory.close()
        os.close(self.file)

    def mark(self, worker: int, job: int, start: float, quiet: float) -> None:
        """Write what a worker is doing."""
        _MARK.pack_into(self.memory, _WIDTH * (self.rewards + worker), job, start, quiet)

    def read(self, worker: int) -> Mark:
        """Read what a worker is doing."""
        return Mark._make(_MARK.unpack_from(self.memory, _WIDTH * (self.rewards + worker)))

    def revoke(self, worker: int, chunk: int) -> None:
        """Tell a worker to do no further job of a chunk, named by the number of a job in it."""
        _REVOKED.pack_into(self.memory, _WIDTH * (self.rewards + worker) + _MARK.size, chunk)

    def revoked(self, worker: int) -> int:
        """Return what `revoke` wrote last."""
        number: int = _REVOKED.unpack_from(self.memory, _WIDTH * (self.rewards + worker) + _MARK.size)[0]
        return number

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
