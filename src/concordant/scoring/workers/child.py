"""A worker process: it is given chunks of jobs, calls the reward, and reports outcomes as soon as they matter.

What it tells its parent is JSON, never pickle: the code it runs may have been taken over by the text it judges.
"""

import asyncio
import json
import math
import pickle
import socket
import struct
import time
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from typing import Any

from concordant.scoring.call import Call, Gate, Job, TimedOut
from concordant.scoring.outcome import Outcome
from concordant.scoring.reward import Reward
from concordant.scoring.values import missing, raised
from concordant.scoring.workers.shared import IDLE, Shared

FLUSH = 0.001
"""Seconds after which outcomes are not held back any longer. What is held back when a worker is killed is done again,
and it took less than this."""
_BEAT = 0.1
_SIZE = struct.Struct("<Q")
_LARGEST = 1 << 30
_current: ContextVar[int] = ContextVar("job", default=IDLE)


def frame(data: bytes) -> bytes:
    """A message with its length in front."""
    return _SIZE.pack(len(data)) + data


class Frames:
    """Puts messages together from what arrives in pieces."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the messages that this piece completes."""
        self.data += piece
        found, at = [], 0
        while len(self.data) - at >= _SIZE.size:
            (size,) = _SIZE.unpack_from(self.data, at)
            if size > _LARGEST:
                raise ValueError(f"a message of {size} bytes")
            if len(self.data) - at - _SIZE.size < size:
                break
            found.append(bytes(self.data[at + _SIZE.size : at + _SIZE.size + size]))
            at += _SIZE.size + size
        del self.data[:at]
        return found


def pack(outcome: Outcome) -> Any:
    """An outcome as JSON: the number alone where there is nothing else to say."""
    o = outcome
    if type(o.value) is float and o.confidence is None and not o.kind and not o.detail:
        return o.value
    return [o.value, o.reason, o.confidence, o.kind, dict(o.detail), o.sandbox]


def unpack(said: Any, seconds: float, attempts: int) -> Outcome:
    """Read what `pack` wrote; anything else is refused."""
    if type(said) is float and math.isfinite(said):
        return Outcome(said, seconds=seconds, attempts=attempts)
    value, reason, confidence, kind, detail, sandbox = said
    if isinstance(value, list):
        value = tuple(map(float, value))
    for number in (value, confidence):
        if not (
            number is None or isinstance(number, tuple) or (type(number) is float and math.isfinite(number))
        ):
            raise ValueError("not a finite number")
    if (value is None) != bool(reason):
        raise ValueError("a value and a reason exclude each other")
    return Outcome(
        value, str(reason), confidence, str(kind), dict(detail), seconds, attempts, sandbox=sandbox
    )


class Worker(Gate):
    """The loop of a worker, and the gate of its calls."""

    failures = (BaseException,)
    here = False
    """Whether this process is a worker."""

    def __init__(self, channel: socket.socket, shared: Shared, slot: int) -> None:
        super().__init__()
        self.channel, self.shared, self.slot = channel, shared, slot
        self.rewards: list[Reward] = []
        self.calls: dict[int, Call] = {}
        self.index, self.job = 0, IDLE
        self.held: list[Any] = []
        self.flushed = 0.0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stepping = 0.0
        self.late = False

    # ---- talking -----------------------------------------------------------------------------------------------

    def say(self, message: Any) -> None:
        """Send a message to the parent."""
        self.channel.sendall(frame(json.dumps(message).encode()))

    def report(self, job: int, outcomes: list[Outcome]) -> None:
        """Hold outcomes until `FLUSH` seconds have passed."""
        first = outcomes[0]
        self.held.append([job, first.seconds, first.attempts, list(map(pack, outcomes))])
        if time.monotonic() - self.flushed > FLUSH:
            self.flush()

    def flush(self) -> None:
        """Send what is held."""
        held, self.held = self.held, []
        if held:
            self.say({"done": held})
        self.flushed = time.monotonic()

    def serve(self) -> None:
        """Work on chunks until the parent ends."""
        frames = Frames()
        while piece := self.channel.recv(1 << 18):
            for message in frames.feed(piece):
                index, names, jobs, slots = pickle.loads(message)
                self.late = False
                self.index = index
                call = self.calls.get(index)
                if call is None or call.names != names:
                    call = self.calls[index] = Call(self.rewards[index], names, self)
                self.flushed = time.monotonic()
                if call.reward.is_async:
                    self._loop().run_until_complete(self._many(call, jobs, slots))
                else:
                    for job, payload in jobs:
                        if self.shared.revoked(self.slot) >= jobs[0][0]:
                            break  # others do the rest
                        self.job = job
                        self.report(job, self._one(call, payload))
                self.flush()
                self.say({"end": True, "late": self.late})

    # ---- synchronous calls -------------------------------------------------------------------------------------

    def _one(self, call: Call, payload: bytes) -> list[Outcome]:
        try:
            job = Job._make(pickle.loads(payload))
        except Exception as error:
            return missing(f"its inputs could not be read: {raised(error)}", 1)
        return call(job)

    def enter(self) -> float:
        """Wait for the rate limit, then tell the parent that the clock of this job runs."""
        reward = self.rewards[self.index]
        if reward.rate:
            self.pause(self.shared.take_start(self.index, reward.rate))
        now = time.monotonic()
        self.shared.mark(self.slot, self.job, now, math.inf)
        return now

    def leave(self) -> None:
        """Tell the parent that no job's code runs."""
        self.shared.mark(self.slot, IDLE, 0.0, time.monotonic())

    def pause(self, seconds: float) -> None:
        """Wait, and say for how long; what is held goes out before."""
        if seconds > 0:
            self.flush()
            self.shared.mark(self.slot, IDLE, 0.0, time.monotonic() + seconds)
            time.sleep(seconds)

    def finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine that a synchronous function returned; the clock runs already."""
        return self._loop().run_until_complete(coroutine)

    def _loop(self) -> asyncio.AbstractEventLoop:
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        return self.loop

    # ---- asynchronous calls ------------------------------------------------------------------------------------

    async def _many(self, call: Call, jobs: list[tuple[int, bytes]], slots: int) -> None:
        """Work on a chunk with `slots` calls in flight."""
        beat = asyncio.ensure_future(self._beat())
        waiting = iter(jobs)

        async def lane() -> None:
            for number, payload in waiting:
                try:
                    job = Job._make(pickle.loads(payload))
                except Exception as error:
                    self.report(number, missing(f"its inputs could not be read: {raised(error)}", 1))
                    continue
                _current.set(number)
                self.report(number, await call.wait(job))

        await asyncio.gather(*(lane() for _ in range(min(slots, len(jobs)))))
        beat.cancel()
        self.shared.mark(self.slot, IDLE, 0.0, time.monotonic())

    async def _beat(self) -> None:
        """Show that the loop turns."""
        while True:
            self.shared.mark(self.slot, IDLE, 0.0, time.monotonic() + _BEAT)
            if self.held and time.monotonic() - self.flushed > FLUSH:
                self.flush()
            await asyncio.sleep(_BEAT)

    async def attempt(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run an attempt for at most the reward's time limit.

        Time in which other calls kept the loop busy does not count. An attempt that ignores being cancelled is left
        behind; the worker is then replaced after the chunk.
        """
        reward = self.rewards[self.index]
        if reward.rate:
            await asyncio.sleep(self.shared.take_start(self.index, reward.rate))
        steps = _Steps(self, _current.get(), coroutine)
        task = asyncio.ensure_future(_drive(steps))
        while True:
            left = steps.start + steps.stolen() + reward.timeout - time.monotonic()
            done, _ = await asyncio.wait({task}, timeout=max(left, 0.0))
            if done:
                value, error = task.result()
                if error is not None:
                    raise error
                return value
            if left <= 0:
                task.cancel()
                self.late = True
                raise TimedOut


class _Steps:
    """An attempt, awaited: while code of the job runs between two awaits, the parent can see which one it is."""

    def __init__(self, worker: Worker, job: int, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.worker, self.job, self.inner = worker, job, coroutine.__await__()
        self.start, self.before, self.own = time.monotonic(), worker.stepping, 0.0

    def stolen(self) -> float:
        """Seconds in which other jobs kept the loop busy since this attempt began."""
        return self.worker.stepping - self.before - self.own

    def __await__(self) -> Generator[Any, Any, Any]:
        value, error = None, None
        while True:
            try:
                waits_for = self._step(value, error)
            except StopIteration as stop:
                return stop.value
            value, error = None, None
            try:
                value = yield waits_for
            except BaseException as thrown:  # cancelling, too, goes through to the job
                error = thrown

    def _step(self, value: Any, error: BaseException | None) -> Any:
        worker, began = self.worker, time.monotonic()
        worker.shared.mark(worker.slot, self.job, self.start + self.stolen(), math.inf)
        try:
            return self.inner.send(value) if error is None else self.inner.throw(error)
        finally:
            now = time.monotonic()
            self.own += now - began
            worker.stepping += now - began
            worker.shared.mark(worker.slot, IDLE, 0.0, now + _BEAT)


async def _drive(steps: _Steps) -> tuple[Any, BaseException | None]:
    """Await an attempt. A loop does not survive SystemExit in a task, so that one is handed over as a value."""
    try:
        return await steps, None
    except (SystemExit, KeyboardInterrupt) as error:
        return None, error
