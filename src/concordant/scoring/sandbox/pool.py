"""The sandbox as callers see it, and the one that rewards of a process share."""

import atexit
import os
import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from concordant.scoring.isolation import LEVELS, Level, SandboxError, isolation
from concordant.scoring.sandbox.judge import judge
from concordant.scoring.sandbox.limits import Limits
from concordant.scoring.sandbox.programs import CallTest, Program, Result, Test, TestResult
from concordant.scoring.sandbox.slot import BATCH, Damaged, Input, Slot, Source


class Sandbox:
    """Runs programs nobody vouches for. A context manager; slots start when they are first needed.

    Args:
        level: `bubblewrap`, or `none`: rlimits and a process group, which hold honest mistakes and no attack.
        slots: programs at once (from as many threads).
        limits: bounds on each run.

    Raises SandboxError, and runs nothing, where bubblewrap is missing or not allowed.
    Safe for threads. Not across `fork`: make one in each process.
    """

    def __init__(self, level: Level = "bubblewrap", slots: int = 2, limits: Limits | None = None):
        if level not in LEVELS:
            raise SandboxError(f"unknown sandbox level {level!r}; known: {', '.join(LEVELS)}")
        if slots < 1:
            raise SandboxError(f"a sandbox needs at least one slot, got {slots}")
        self.level = level
        self.limits = limits or Limits()
        self._owner = os.getpid()
        self._free: queue.LifoQueue[Slot | None] = queue.LifoQueue()
        for _ in range(slots):
            self._free.put(None)
        self._slots = slots
        # The kernel ends a sandbox with the thread that started it, so one thread that stays starts them all.
        self._starter = ThreadPoolExecutor(1, "sandbox")
        self._closed = False

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all slots, waiting for those at work."""
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        for _ in range(self._slots):
            slot = self._free.get()
            if slot is not None:
                slot.close()
        self._starter.shutdown()

    def run(self, program: Program) -> Result:
        """Run a program once, as `__main__`."""
        with Source(program.code) as source:
            return self._run(source, [program], float("inf"))[0]

    def run_tests(
        self, code: str, tests: Sequence[Test], isolated: bool = True, seconds: float | None = None
    ) -> list[TestResult]:
        """Run every test of a program, whatever the ones before it did; one verdict for each, in order.

        Args:
            code: Python source.
            tests: what to run and what to expect. Expectations never enter the sandbox.
            isolated: a fresh process for each test. Otherwise tests run one after the other in one process, in fresh
                globals, and may meet what earlier ones left in modules and in /tmp; several times as fast. Only the
                program's own tests share it, and one that ends the process costs the others nothing.
            seconds: bound on all tests together, default none. Tests it leaves no time for fail.
        """
        end = time.monotonic() + seconds if seconds is not None else float("inf")
        results: list[Result] = []
        with Source(code) as source:
            while len(results) < len(tests):
                if time.monotonic() >= end:
                    late = Result(
                        "", "", "timeout", f"not run: the tests before took all of {seconds:g} s", 0.0
                    )
                    results += [late] * (len(tests) - len(results))
                    break
                batch = _batch(tests[len(results) :], 1 if isolated else BATCH)
                results += self._run(source, batch, end)
        return [judge(test, result) for test, result in zip(tests, results, strict=True)]

    def _run(self, source: Source, tests: Sequence[Input], deadline: float) -> list[Result]:
        """Run on a free slot; if the sandbox breaks, once more on a new one."""
        for attempt in (1, 2):
            slot = self._take()
            try:
                results = slot.run(source, tests, deadline)
            except Damaged as error:
                reason = f"the sandbox failed: {error} ({slot.server.complaint()})"
                slot.close()
                self._free.put(None)
                if attempt == 2:
                    return [Result("", "", "broken", reason, 0.0)]
            except BaseException:
                slot.close()  # interrupted: nobody knows what the slot is doing
                self._free.put(None)
                raise
            else:
                self._free.put(slot)
                return results
        raise AssertionError("unreachable")

    def _take(self) -> Slot:
        if self._closed:
            raise SandboxError("this sandbox is closed")
        if self._owner != os.getpid():
            raise SandboxError("a sandbox does not survive a fork: make one in the new process")
        slot = self._free.get()
        if slot is None:
            try:
                slot = self._starter.submit(Slot, self.level, self.limits).result()
            except BaseException:
                self._free.put(None)
                raise
        return slot


def _batch(tests: Sequence[Test], size: int) -> Sequence[Test]:
    """Return the longest run of tests of one kind from the start."""
    kind = isinstance(tests[0], CallTest)
    count = next((i for i, test in enumerate(tests) if isinstance(test, CallTest) != kind), len(tests))
    return tests[: min(count, size)]


def available() -> str:
    """Try the bubblewrap sandbox: empty if it works here, else the reason why not."""
    try:
        with Sandbox(slots=1) as sandbox:
            result = sandbox.run(Program("print(6 * 7)"))
    except SandboxError as error:
        return str(error)
    return (
        "" if result.stdout == "42\n" else f"the sandbox runs no programs: {result.reason or result.stdout!r}"
    )


def shared(limits: Limits | None = None) -> Sandbox:
    """Return this process's sandbox of one slot for these limits; made when first asked for, closed at exit."""
    return _shared(os.getpid(), isolation(), limits or Limits())


@cache
def _shared(process: int, level: Level, limits: Limits) -> Sandbox:
    sandbox = Sandbox(level, slots=1, limits=limits)
    atexit.register(sandbox.close)
    return sandbox
