"""Call one reward for one unit of work (a row, a pair, a group, a batch). Nothing here imports torch."""

import asyncio
import hashlib
import inspect
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from tenacity import AsyncRetrying, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from concordant.scoring.outcome import Outcome
from concordant.scoring.reward import Context, Reward, TransientError
from concordant.scoring.values import missing, raised, read

TRANSIENT = (ConnectionError, TimeoutError, TransientError)
"""Errors after which another attempt is made."""
ASYNC_CALLS = 16
"""Calls in flight of an async reward that does not say how many it wants."""
OWN_FIELDS = ("missing", "verdicts")
"""Fields in which earlier scores are recorded: only for functions that name them."""
_PLURAL = {"prompts": "prompt", "completions": "completion"}
_BACK_OFF = wait_exponential(multiplier=0.1, max=10)


class Job(NamedTuple):
    """The inputs of one call."""

    values: tuple[Any, ...]
    """One for each name of `arguments`; lists over the rows, unless a single row is judged by its fields."""
    size: int = 1
    """Rows judged."""
    length: int | None = None
    """Values expected for the row, at the levels `segment` and `step`."""
    context: Context | None = None


class Gate:
    """What happens around an attempt. This one waits where there is a rate limit and tells the time; a worker's also
    marks what runs, for the parent that enforces the time limit.
    """

    failures: tuple[type[BaseException], ...] = (Exception, SystemExit)
    """What a reward may raise without ending the process."""

    def __init__(self, rate: float = 0.0) -> None:
        self.rate, self.next = rate, 0.0

    def delay(self) -> float:
        """Take the next start that the rate allows; return the seconds until then."""
        if not self.rate:
            return 0.0
        now = time.monotonic()
        start = max(now, self.next)
        self.next = start + 1 / self.rate
        return start - now

    def enter(self) -> float:
        """Begin a synchronous attempt; return the clock."""
        self.pause(self.delay())
        return time.monotonic()

    def leave(self) -> None:
        """End a synchronous attempt."""

    def pause(self, seconds: float) -> None:
        """Wait before a synchronous attempt."""
        if seconds > 0:
            time.sleep(seconds)

    def finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end."""
        return _run(coroutine)

    async def attempt(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run one asynchronous attempt."""
        await asyncio.sleep(self.delay())
        return await coroutine


class TimedOut(Exception):
    """An asynchronous attempt ran over its time; there is no further one."""


def call_seed(*parts: object) -> int:
    """A stable number in [0, 2^63) for what a call is about."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def wants_lists(reward: Reward) -> bool:
    """Whether a call is given lists over rows."""
    return reward.style == "batch" or reward.level in ("group", "batch")


def takes_context(reward: Reward) -> bool:
    """Whether it has a parameter `context`."""
    return "context" in reward.parameters


def arguments(reward: Reward, fields: Sequence[str]) -> dict[str, str]:
    """Return which field each parameter of the call gets.

    A function with `**kwargs` gets every field, except the records of earlier scores. In TRL's convention `prompts`
    and `completions` are the fields `prompt` and `completion`.
    """
    plural = _PLURAL if reward.style == "batch" and reward.level != "pair" else {}
    known = {name: name for name in fields if name not in plural.values()}
    known |= {many: one for many, one in plural.items() if one in fields}
    parameters = reward.parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {name: field for name, field in known.items() if name not in OWN_FIELDS or name in parameters}
    return {name: known[name] for name in parameters if name in known}


def _extras(reward: Reward) -> Mapping[str, Any]:
    """Further arguments that TRL passes, for functions that name them: there is no trainer here."""
    if reward.style != "batch" or reward.level == "pair":
        return {}
    harmless = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore, "environments": None}
    return {name: value for name, value in harmless.items() if name in reward.parameters}


def _ignore(*values: Any) -> None:
    """Stand in for a trainer's logger."""


class Call:
    """A reward with the names of its arguments, to be called for one job after the other."""

    def __init__(self, reward: Reward, names: Sequence[str], gate: Gate) -> None:
        self.reward, self.names, self.gate = reward, tuple(names), gate
        self.extras = _extras(reward)

    def __call__(self, job: Job) -> list[Outcome]:
        """Call a synchronous reward, again after transient errors; return one outcome a row."""
        state = _Attempts(self, job)
        try:
            return state.once()
        except TRANSIENT as error:
            return state.lost(error) if not self.reward.retries else self._again(state, error)
        except self.gate.failures as error:  # foreign code: any failure is a missing value with its reason
            return state.lost(error)

    def _again(self, state: "_Attempts", first: BaseException) -> list[Outcome]:
        try:
            again = Retrying(sleep=self.gate.pause, **self._policy())
            return again(state.once_more, [first])
        except self.gate.failures as error:
            return state.lost(error)

    async def wait(self, job: Job) -> list[Outcome]:
        """Call an asynchronous reward, again after transient errors; return one outcome a row."""
        state = _Attempts(self, job)
        try:
            try:
                return await state.wait()
            except TRANSIENT as error:
                if not self.reward.retries:
                    raise
                first: list[BaseException] = [error]
            return await AsyncRetrying(**self._policy())(state.wait_again, first)
        except TimedOut:
            return missing(timed_out(self.reward), job.size, state.seconds, state.made)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # not the reward's doing: the process ends
                raise
            return state.lost(error)
        except self.gate.failures as error:  # as above
            return state.lost(error)

    def _policy(self) -> dict[str, Any]:
        return {
            "stop": stop_after_attempt(self.reward.retries + 1),
            "wait": _BACK_OFF,
            "retry": retry_if_exception_type(TRANSIENT),
            "reraise": True,
        }


class _Attempts:
    """The attempts at one job."""

    def __init__(self, call: Call, job: Job) -> None:
        self.reward, self.gate, self.job = call.reward, call.gate, job
        self.given = {**call.extras, **dict(zip(call.names, job.values, strict=True))}
        if job.context is not None:
            self.given["context"] = job.context
        self.made, self.started = 0, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def once(self) -> list[Outcome]:
        self.made += 1
        self.started = self.gate.enter()
        try:
            raw = self.reward.function(**self.given)
            return self.read(self.gate.finish(raw) if inspect.iscoroutine(raw) else raw)
        finally:
            self.gate.leave()

    def once_more(self, failed: list[BaseException]) -> list[Outcome]:
        """Tell tenacity of the first attempt, made without it: it costs more than most rewards."""
        if failed:
            raise failed.pop()
        return self.once()

    async def wait_again(self, failed: list[BaseException]) -> list[Outcome]:
        """As `once_more`."""
        if failed:
            raise failed.pop()
        return await self.wait()

    async def wait(self) -> list[Outcome]:
        self.made += 1
        self.started = time.monotonic()
        return self.read(await self.gate.attempt(self.reward.function(**self.given)))

    def read(self, raw: Any) -> list[Outcome]:
        job = self.job
        return read(self.reward, raw, job.size, job.length, self.seconds, self.made)

    def lost(self, error: BaseException) -> list[Outcome]:
        return missing(raised(error), self.job.size, self.seconds, self.made)


def timed_out(reward: Reward) -> str:
    """The reason of an attempt that ran over its time."""
    return f"timed out after {reward.timeout:g} s"


def call_here(reward: Reward, names: Sequence[str], jobs: Sequence[Job], gate: Gate) -> list[list[Outcome]]:
    """Call an inline reward in this process: one job after the other, or many in flight if it is async."""
    call = Call(reward, names, gate)
    if not reward.is_async:
        return [call(job) for job in jobs]

    async def everything() -> list[list[Outcome]]:
        free = asyncio.Semaphore(reward.concurrency or ASYNC_CALLS)

        async def one(job: Job) -> list[Outcome]:
            async with free:
                return await call.wait(job)

        return list(await asyncio.gather(*map(one, jobs)))

    return list(_run(everything()))


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine; in a thread of its own where this one already runs a loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(coroutine)))
    thread.start()
    thread.join()
    return found[0]
