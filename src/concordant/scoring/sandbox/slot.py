"""One live sandbox: hands jobs to its server, watches the clock, reads what programs left behind."""

import json
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from concordant.scoring.isolation import Level, SandboxError
from concordant.scoring.sandbox import bubblewrap, server
from concordant.scoring.sandbox.limits import Limits
from concordant.scoring.sandbox.programs import CallTest, Program, Result, Status, StdioTest

START_SECONDS = 30.0
GRACE_SECONDS = 5.0
"""How long a server may take to report a child that was killed."""
TICK_SECONDS = 0.05
BATCH = 32
"""Tests in one job: their files must fit into one message (253 descriptors) and into memory."""
Input = Program | StdioTest | CallTest


class Damaged(Exception):
    """The server is silent, gone or talks nonsense: the slot is of no more use."""


@dataclass(frozen=True)
class _Files:
    """Descriptors of one test: input, stdout, stderr, returned value (-1 where the test has none)."""

    stdin: int
    stdout: int
    stderr: int
    value: int = -1

    @property
    def all(self) -> list[int]:
        return [fd for fd in (self.stdin, self.stdout, self.stderr, self.value) if fd >= 0]


class Source:
    """A program's text in a file, and room for what its first child compiles."""

    def __init__(self, code: str):
        self.text = _file(code.encode("utf-8", "surrogateescape"))
        self.compiled = _file(b"")

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.text)
        os.close(self.compiled)


class Slot:
    """A server process and its socket. Not for use by several threads at once."""

    def __init__(self, level: Level, limits: Limits):
        """Start; the thread that does must outlive the slot."""
        self.limits = limits
        self.jobs = 0
        self.server = bubblewrap.start(level)
        try:
            if self._receive(START_SECONDS) != server.READY:
                raise Damaged("no answer")
        except Damaged as error:
            self.server.process.kill()
            self.server.process.wait()
            detail = self.server.complaint()
            self.close()
            raise SandboxError(bubblewrap.REFUSED.format(detail=detail)) from error

    def close(self) -> None:
        """End the server and everything in it."""
        self.server.end()

    def run(self, source: Source, tests: Sequence[Input], deadline: float) -> list[Result]:
        """Run tests in one process, one after the other, up to the first that does not end by itself.

        Returns results of the tests that ran, at least one. Raises Damaged if the sandbox failed.
        """
        tests = tests[:BATCH]
        self.jobs += 1
        started = time.monotonic()
        with ExitStack() as stack:
            confined, state = _open(stack, b""), _open(stack, b"")
            files = [_files(stack, test) for test in tests]
            self._send([confined, state, source.text, source.compiled], tests, files)
            code, cpu, late = self._watch(state, len(tests), deadline)
            seconds = time.monotonic() - started
            if os.pread(confined, 1, 0) != b"\1":
                raise Damaged(f"a child was not confined (exit code {code})")
            codes: list[int | None] = list(_ended(state, len(tests)))
            if len(codes) < len(tests):
                codes.append(None if late else code)
            share = seconds / len(codes)
            allowed = min(self.limits.wall_seconds, deadline - started)
            spent = cpu >= self.limits.cpu_seconds * len(tests) - 0.2
            how = _How(self.limits, max(allowed, 0.0), spent)
            return [how.result(files[i], code, share) for i, code in enumerate(codes)]

    def _send(self, common: list[int], tests: Sequence[Input], files: Sequence[_Files]) -> None:
        limits = self.limits
        header = server.HEADER.pack(
            self.jobs,
            server.CALL if isinstance(tests[0], CallTest) else server.STDIO,
            len(tests),
            limits.cpu_seconds * len(tests),
            limits.memory_mb << 20,
            limits.processes,
            max(limits.file_mb << 20, limits.output_bytes + 1),
        )
        fds = [*common, *(fd for group in files for fd in group.all)]
        try:
            socket.send_fds(self.server.control, [header], fds)
        except OSError as error:
            raise Damaged(f"sending failed: {error}") from error

    def _watch(self, state: int, tests: int, deadline: float) -> tuple[int, float, bool]:
        """Wait for the child's end, allowing each test its time; returns exit code, CPU seconds, whether it was late.

        The child's own word on its progress is believed, and buys it no more than what all tests together may take.
        """
        ended, since, late = 0, time.monotonic(), False
        while True:
            now = time.monotonic()
            left = min(since + self.limits.wall_seconds, deadline) - now
            if left <= 0:
                late = True
                with suppress(OSError):
                    self.server.control.send(server.KILL.pack(self.jobs))
                left = GRACE_SECONDS
            data = self._receive(left if late or tests == 1 else min(left, TICK_SECONDS))
            if data is not None or late:
                return (*self._reply(data), late)
            reached = len(_ended(state, tests))
            if reached > ended:
                ended, since = reached, time.monotonic()

    def _reply(self, data: bytes | None) -> tuple[int, float]:
        if data is None or len(data) != server.REPLY.size:
            raise Damaged(
                "the server did not answer" if not data else "the server's answer has the wrong length"
            )
        number, code, cpu = server.REPLY.unpack(data)
        if number != self.jobs:
            raise Damaged("the server answered another question")
        return code, cpu

    def _receive(self, seconds: float) -> bytes | None:
        """Next message; None if none came in time. An end of the connection is damage."""
        poll = select.poll()
        poll.register(self.server.control, select.POLLIN)
        if not poll.poll(max(1.0, seconds * 1000)):
            return None
        try:
            data = self.server.control.recv(64)
        except OSError as error:
            raise Damaged(str(error)) from error
        if not data:
            raise Damaged("the server ended")
        return data


@dataclass(frozen=True)
class _How:
    """Turns how a test ended into its result."""

    limits: Limits
    allowed: float
    cpu_spent: bool

    def result(self, files: _Files, code: int | None, seconds: float) -> Result:
        """Read the files and say what happened; `code` None is a test that was stopped for time."""
        limit = self.limits.output_bytes
        texts = [
            os.pread(fd, limit + 1, 0) if fd >= 0 else b"" for fd in (files.stdout, files.stderr, files.value)
        ]
        stdout, stderr, value = (text[:limit].decode("utf-8", "replace") for text in texts)
        status, reason = self._ending(code, stderr)
        if status in ("finished", "failed") and any(len(text) > limit for text in texts):
            status, reason = "output", f"wrote more than {limit} bytes"
        return Result(stdout, stderr, status, reason, seconds, value)

    def _ending(self, code: int | None, stderr: str) -> tuple[Status, str]:
        if code is None:
            return "timeout", f"timed out after {self.allowed:g} s"
        if code == 0:
            return "finished", ""
        if code > 0:
            last = "".join(c if c.isprintable() else "?" for c in stderr.rstrip().rpartition("\n")[2][:200])
            return "failed", f"exited with code {code}" + (f": {last}" if last else "")
        if self.cpu_spent:
            return "timeout", f"used up {self.limits.cpu_seconds} s of CPU time"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return "killed", f"killed by signal {name}"


def _ended(state: int, tests: int) -> list[int]:
    """Exit codes of the tests that ended, in order."""
    mark = server.ENDED
    data = os.pread(state, tests * mark.size, 0)
    marks = [number for (number,) in mark.iter_unpack(data[: len(data) // mark.size * mark.size])]
    return [number - 1 for number in (marks[: marks.index(0)] if 0 in marks else marks)]


def _file(content: bytes) -> int:
    fd = os.memfd_create("", os.MFD_CLOEXEC)
    if content:
        _write(fd, content)
    return fd


def _write(fd: int, content: bytes) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(fd, content[done:], done)


def _open(stack: ExitStack, content: bytes) -> int:
    fd = _file(content)
    stack.callback(os.close, fd)
    return fd


def _files(stack: ExitStack, test: Input) -> _Files:
    if isinstance(test, CallTest):
        try:
            text = json.dumps([test.function, list(test.args), dict(test.kwargs)])
        except (TypeError, ValueError) as error:
            raise SandboxError(f"arguments of {test.function} must be JSON: {error}") from error
        stdin = _open(stack, text.encode())
        return _Files(stdin, _open(stack, b""), _open(stack, b""), _open(stack, b""))
    stdin = _open(stack, test.stdin.encode("utf-8", "surrogateescape"))
    return _Files(stdin, _open(stack, b""), _open(stack, b""))
