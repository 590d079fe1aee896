"""Warm worker processes that can be killed, seen from the parent: who does what, and what if it does not end.

One thread, which ends with the pool, watches all workers. A job's clock starts when its own code starts. A worker that
runs over is killed with everything it started; the job that was running is the culprit and is recorded as missing,
jobs that had ended keep their outcomes, and the others go to another worker. Where it cannot be told which job of a
chunk killed or stopped a worker, those that had not ended are done again one by one.
"""

import contextlib
import json
import os
import pickle
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from concordant.core.errors import RewardError
from concordant.scoring.call import timed_out
from concordant.scoring.reward import Reward
from concordant.scoring.workers.child import Frames, frame, unpack
from concordant.scoring.workers.launch import Launcher, prepare
from concordant.scoring.workers.schedule import Chunk, Schedule, Ticket, Work
from concordant.scoring.workers.shared import IDLE, Mark, Shared

START_SECONDS = 120.0
"""Longest time in which a worker must have imported the rewards."""
FALSE_STARTS = 3
"""Workers in a row that may end before they have done anything."""
_SLOW = 0.05
"""Seconds of a job after which the jobs behind it are given to idle workers."""
_SLACK = 1.0
"""Seconds that a chunk may take to reach a worker's code."""


@dataclass(eq=False)
class _Worker:
    """What is known of a worker."""

    slot: int
    token: int
    socket: socket.socket
    begun: float
    ready: bool = False
    chunk: Chunk | None = None
    ending: bool = False
    suspect: Mark | None = None
    """What it was doing when it was killed for being over its time."""
    frames: Frames = field(default_factory=Frames)
    out: memoryview = field(default_factory=lambda: memoryview(b""))
    """What is still to be sent; a view, so that sending an image piece by piece copies nothing."""


class Pool:
    """A number of workers for a list of rewards."""

    def __init__(
        self, rewards: Sequence[Reward], workers: int, memory: int = 0, log: Path | None = None
    ) -> None:
        self.rewards, self.count, self.log = rewards, workers, log
        self.setting = prepare(rewards, memory)
        self.owner = os.getpid()
        self.lock = threading.RLock()
        self.inbox: deque[Work] = deque()
        self.closing = False
        self.error: RewardError | None = None
        self.wake, self.waker = socket.socketpair()
        self.waker.setblocking(False)
        self.schedule = Schedule(rewards, workers)
        self.workers: list[_Worker] = []
        self.false_starts = 0
        self.shared = Shared.make(workers, len(rewards))
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.wake, selectors.EVENT_READ, self._woken)
        self._launch()
        self.thread = threading.Thread(target=self._watch, name="concordant-scoring", daemon=True)
        self.thread.start()

    # ---- asking, from any thread -------------------------------------------------------------------------------

    def submit(
        self, index: int, names: tuple[str, ...], payloads: Sequence[bytes], sizes: Sequence[int]
    ) -> Ticket:
        """Hand in jobs of one reward.

        Args:
            index: which reward.
            names: of its arguments.
            payloads: pickled `Job`s.
            sizes: rows that each of them judges.
        """
        ticket = Ticket(index, names, sizes)
        with self.lock:
            if os.getpid() != self.owner:
                ticket.fail(
                    RewardError("a scoring engine works in the process that made it, not in forks of it")
                )
            elif self.closing:
                ticket.fail(self.error or RewardError("the scoring engine is closed"))
            else:
                self.inbox.extend(Work(ticket, place, payload) for place, payload in enumerate(payloads))
        self._notify()
        return ticket

    def close(self) -> None:
        """End all workers and the thread that watches them; work that is not done fails."""
        if os.getpid() != self.owner:
            return  # a fork of the process that has the workers
        with self.lock:
            self.closing = True
        self._notify()
        if threading.current_thread() is not self.thread:  # which may collect a forgotten engine itself
            self.thread.join()

    def _notify(self) -> None:
        with contextlib.suppress(OSError):  # a full pipe wakes as well; a closed one has no one to wake
            self.waker.send(b"x")

    # ---- the thread --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            while not self.closing:
                for key, _ in self.selector.select(self._look()):
                    key.data()
        except BaseException as error:  # nobody else would see it, and whoever waits would wait for ever
            self._give_up(f"scoring stopped: {type(error).__name__}: {error}")
        finally:
            self._end()

    def _give_up(self, reason: str) -> None:
        """Stop for good: what is asked from now on fails with this reason."""
        with self.lock:
            self.closing, self.error = True, RewardError(reason)

    def _end(self) -> None:
        error = self.error or RewardError("the scoring engine was closed before this was scored")
        held = [work for worker in self.workers if worker.chunk for work in worker.chunk.jobs.values()]
        for work in [*held, *self.inbox, *self.schedule.take_all()]:
            work.ticket.fail(error)
        self.launcher.close()
        for worker in self.workers:
            worker.socket.close()
        self.selector.close()
        self.wake.close()
        self.waker.close()
        self.shared.close()

    def _woken(self) -> None:
        self.wake.recv(4096)

    def _look(self) -> float:
        """Hand out work, end what runs over; return the seconds until there is something to look at again."""
        while self.inbox:
            self.schedule.add(self.inbox.popleft())
        now = time.monotonic()
        running = [worker.chunk for worker in self.workers if worker.chunk]
        for worker in self.workers:
            if worker.ready and not worker.chunk and not worker.ending:
                chunk = self.schedule.next_chunk(running) or self._split(now)
                if chunk is not None:
                    self._send(worker, chunk, now)
                    running.append(chunk)
        waits = [self._check(worker, now) for worker in self.workers]
        return max(0.001, min(waits, default=START_SECONDS))

    def _check(self, worker: _Worker, now: float) -> float:
        """Return the seconds until a worker must be looked at; kill it if it is over its time."""
        if worker.ending or (worker.ready and worker.chunk is None):
            return START_SECONDS
        if worker.chunk is None:
            left = again = worker.begun + START_SECONDS - now
        else:
            mark, limit = self.shared.read(worker.slot), self.rewards[worker.chunk.index].timeout
            left = (mark.quiet if mark.job == IDLE else mark.start) + limit - now
            again = min(left, limit)  # a job may start right now, which wakes nobody here
            worker.suspect = mark if left <= 0 else None
        if left <= 0:
            self._kill(worker)
        return min(again, _SLOW) if self._splittable(worker) else again

    def _splittable(self, worker: _Worker) -> bool:
        """Whether a worker has jobs that it could give away."""
        chunk = worker.chunk
        if chunk is None or chunk.split or len(chunk.jobs) < 2:
            return False
        return not self.schedule.asynchronous[chunk.index]

    def _split(self, now: float) -> Chunk | None:
        """Give the jobs behind a slow one to an idle worker; one that is done twice by chance counts once."""
        for worker in self.workers:
            mark = self.shared.read(worker.slot)
            chunk = worker.chunk
            if chunk and self._splittable(worker) and mark.job in chunk.jobs and now - mark.start > _SLOW:
                chunk.split = True
                self.shared.revoke(worker.slot, max(chunk.jobs))
                running = chunk.jobs.pop(mark.job)
                self.schedule.put_back(list(chunk.jobs.values()))
                chunk.jobs = {mark.job: running}
                return self.schedule.next_chunk([w.chunk for w in self.workers if w.chunk])
        return None

    # ---- one worker --------------------------------------------------------------------------------------------

    def _send(self, worker: _Worker, chunk: Chunk, now: float) -> None:
        """Give a chunk to an idle worker."""
        worker.chunk, chunk.begun = chunk, now
        self.shared.mark(worker.slot, IDLE, 0.0, now + _SLACK)
        jobs = [(number, work.payload) for number, work in chunk.jobs.items()]
        worker.out = memoryview(frame(pickle.dumps((chunk.index, chunk.names, jobs, chunk.slots))))
        self._write(worker)

    def _write(self, worker: _Worker) -> None:
        """Send what the channel takes now."""
        with contextlib.suppress(BlockingIOError, ConnectionError):  # the nursery tells of a dead one
            worker.out = worker.out[worker.socket.send(worker.out) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.out else 0)
        self.selector.modify(worker.socket, events, lambda: self._serve(worker))

    def _serve(self, worker: _Worker) -> None:
        """Read what a worker says; go on sending if a part is left."""
        if worker.socket.fileno() < 0:
            return  # buried since the selector saw it
        if worker.out:
            self._write(worker)
        try:
            data = worker.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.selector.unregister(worker.socket)
            if not worker.ending:
                self._kill(worker)
            return
        try:
            for message in worker.frames.feed(data):
                self._hear(worker, json.loads(message))
        except Exception:  # it says what no worker says: code that it runs has taken the channel
            self._kill(worker)

    def _hear(self, worker: _Worker, said: dict[str, Any]) -> None:
        chunk = worker.chunk
        if "failed" in said and not worker.ready:
            self._give_up(str(said["failed"]))
        elif "ready" in said:
            worker.ready = True
        elif chunk is not None:
            for number, seconds, attempts, packed in said.get("done", ()):
                work = chunk.jobs.get(number)
                if work is not None:
                    outcomes = [unpack(one, float(seconds), int(attempts)) for one in packed]
                    if len(outcomes) == 1 and outcomes[0].value is None:
                        outcomes *= work.size
                    if len(outcomes) != work.size:
                        raise ValueError("not one outcome for each row")
                    del chunk.jobs[number]
                    work.settle(outcomes)
            if "end" in said:
                self._chunk_ended(worker, chunk, bool(said["late"]))

    def _chunk_ended(self, worker: _Worker, chunk: Chunk, late: bool) -> None:
        worker.chunk, self.false_starts = None, 0
        self.schedule.put_back(list(chunk.jobs.values()), alone=True)  # none, unless its messages were forged
        if late:  # a call that ran over may still be running in it
            self._kill(worker)
        elif not chunk.split:
            self.schedule.learn(chunk, time.monotonic() - chunk.begun)

    def _kill(self, worker: _Worker) -> None:
        worker.ending = True
        self.launcher.kill(worker.token)

    def _start(self, slot: int) -> None:
        """Ask for a worker."""
        now = time.monotonic()
        self.shared.mark(slot, IDLE, 0.0, now)
        token, channel = self.launcher.start(slot)
        worker = _Worker(slot, token, channel, now)
        self.workers.append(worker)
        self.selector.register(channel, selectors.EVENT_READ, lambda: self._serve(worker))

    # ---- how workers end ---------------------------------------------------------------------------------------

    def _launch(self) -> None:
        """Start the nursery and ask it for workers."""
        self.launcher = Launcher(self.setting, self.shared, self.log)
        self.selector.register(self.launcher.channel, selectors.EVENT_READ, self._news)
        for slot in range(self.count):
            self._start(slot)

    def _news(self) -> None:
        """Hear from the nursery which workers have ended; start it again if it has ended itself."""
        ended = self.launcher.news()
        if ended is not None:
            for token, status in ended:
                for worker in [w for w in self.workers if w.token == token]:
                    self._bury(worker, status)
                    if not self.closing:
                        self._start(worker.slot)
            return
        self.selector.unregister(self.launcher.channel)
        complaint = self.launcher.complaint()
        self.launcher.close()
        for worker in list(self.workers):
            if worker.chunk is not None and not worker.chunk.alone:  # the first time, nobody is to blame
                self.schedule.put_back(list(worker.chunk.jobs.values()), alone=True)
                worker.chunk = None
            worker.ready = True  # it is not its own loading that ended it
            self._bury(worker, signal.SIGKILL)
        self.false_starts += 1
        if complaint or self.false_starts > FALSE_STARTS:
            self._give_up(f"the process that starts reward workers has ended: {complaint or 'it was killed'}")
        elif not self.closing:
            self._launch()

    def _bury(self, worker: _Worker, status: int) -> None:
        """Settle what a dead worker had: what it said before, its culprit, and the rest for others."""
        with contextlib.suppress(KeyError, ValueError):
            while worker.socket in self.selector.get_map() and _waits(worker.socket):
                self._serve(worker)
            self.selector.unregister(worker.socket)
        worker.socket.close()
        self.workers.remove(worker)
        chunk, mark, how = worker.chunk, self.shared.read(worker.slot), how_it_ended(status)
        if not worker.ready and self.error is None:
            self._give_up(f"a worker process ended while it loaded the rewards: {how}")
        elif chunk is None or not chunk.jobs:
            self._count_idle_end(worker, how)
        else:
            self._settle(worker, chunk, mark, how)

    def _count_idle_end(self, worker: _Worker, how: str) -> None:
        self.false_starts += not worker.ending
        if self.false_starts > FALSE_STARTS:
            self._give_up(f"worker processes end without having any work: {how}")

    def _settle(self, worker: _Worker, chunk: Chunk, mark: Mark, how: str) -> None:
        """Find the culprit among the jobs that a dead worker had."""
        over, jobs = worker.suspect, chunk.jobs
        if over is not None:
            how = timed_out(self.rewards[chunk.index])
        culprit = jobs.get(mark.job)
        if over is not None and (over.job, over.start) != (mark.job, mark.start):
            self.schedule.put_back(list(jobs.values()))  # it went on in the last moment: nobody is to blame
            return
        number = mark.job if culprit else next(iter(jobs))
        if culprit is None and len(jobs) > 1:
            self.schedule.put_back(list(jobs.values()), alone=True)
            return
        jobs.pop(number).lose(how, max(time.monotonic() - (mark.start if culprit else chunk.begun), 0.0))
        self.schedule.put_back(list(jobs.values()))


def how_it_ended(status: int) -> str:
    """A wait status in words.

    >>> how_it_ended(9), how_it_ended(3 << 8)
    ('killed: worker ended by signal SIGKILL', 'worker exited with code 3')
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return f"killed: worker ended by signal {name}"
    return f"worker exited with code {os.waitstatus_to_exitcode(status)}"


def _waits(channel: socket.socket) -> bool:
    """Whether there is something to read."""
    try:
        return bool(channel.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
