"""The fork server: runs inside the sandbox, started as `python server.py MODE`; standard library only.

It forks one child for each job that comes over the socket on fd 0, waits for it and reports how it ended. A job is a
fixed-size header and file descriptors; the server never reads them, so that its memory, which every child inherits,
holds nothing of any program: source, input and output pass between the caller and the child through memory files.
The child alone runs foreign code, and has closed the socket and given up its rights before.

MODE says how children are kept apart from the server:
`mapped` (started by root): user 1 of the sandbox, a pid namespace each, no capability;
`single` (started by anyone else): the server's user, a pid namespace each, no capability;
`none`: a process group and rlimits, nothing else.
"""

# ruff: noqa: F401 - modules that programs often use are imported here, so that children need not

import atexit
import bisect
import builtins
import collections
import contextlib
import copy
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import gc
import heapq
import itertools
import json
import linecache
import marshal
import math
import operator
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import string
import struct
import sys
import tempfile
import threading
import traceback
import types
import typing

HEADER = struct.Struct("=IBHIQIQ")
"""Job number, kind, tests, CPU seconds, bytes of memory, processes, bytes of a file."""
REPLY = struct.Struct("=Iid")
"""Job number, exit code (negative: signal), CPU seconds."""
KILL = struct.Struct("=I")
LENGTH = struct.Struct("=q")
READY = b"ready"
STDIO, CALL = 0, 1
ENDED = struct.Struct("=H")
"""One more than the exit code of a test that ended, in the job's state; 0 for the others."""
CLONE_NEWPID, MNT_DETACH = 0x20000000, 2
MOUNT_FLAGS = 2 | 4 | 1024  # nosuid, nodev, noatime
PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/nowhere", "TMPDIR": "/tmp", "USER": "nobody"}

ALWAYS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 512,
    resource.RLIMIT_STACK: 64 << 20,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
}
"""Limits of the server and of every child."""

libc = ctypes.PyDLL(None, use_errno=True)
NO_CAPABILITIES = (
    ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0)),
    ctypes.create_string_buffer(24),
)


def check(result: int) -> None:
    """Raise what libc set in errno."""
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Folder:
    """The private /tmp: an empty file system of limited size, replaced as soon as anything touched it."""

    def __init__(self, mode: str):
        self.mode = mode
        self.path = "/tmp"
        self.state: tuple[object, ...] = ()

    def renew(self, size: int) -> None:
        """Make it empty and as if new."""
        if self.mode == "none":
            if self.state:
                shutil.rmtree(self.path, ignore_errors=True)
            self.path = tempfile.mkdtemp(prefix="unsandboxed-")
            self.state = (self.path,)
            return
        if self.state == self.look(size):
            return
        if self.state:
            check(libc.umount2(b"/tmp", MNT_DETACH))
        options = f"size={size},nr_inodes=4096,mode=1777".encode()
        check(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", MOUNT_FLAGS, options))
        self.state = self.look(size)

    def look(self, size: int) -> tuple[object, ...]:
        """All that a program can change on an empty file system (extended attributes it cannot set). Not the names of
        what it left: they would stay in this process's memory, for the next program to find.
        """
        found = os.stat("/tmp")
        times = (found.st_ctime_ns, found.st_mtime_ns, found.st_atime_ns)
        return (size, *times, found.st_mode, found.st_size, found.st_nlink)

    def remove(self) -> None:
        """Leave nothing on the host when the server ends."""
        if self.mode == "none" and self.state:
            shutil.rmtree(self.path, ignore_errors=True)


def serve(mode: str) -> None:
    """Answer jobs until the caller closes the socket or asks for nonsense."""
    os.closerange(3, 4096)  # bubblewrap passes on what it was given itself
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)
    folder, own = Folder(mode), os.pidfd_open(os.getpid())
    settle(mode)
    control.send(READY)
    while True:
        data, fds, _, _ = socket.recv_fds(control, HEADER.size, 253)
        if len(data) == KILL.size and not fds:
            continue  # the job had ended by itself in the meantime
        if len(data) != HEADER.size:
            break
        job = HEADER.unpack(data)
        folder.renew(job[6])
        child = start(mode, own)
        if child == 0:
            control.close()
            os.close(own)
            run(mode, job, fds, folder.path)
        for fd in fds:
            os.close(fd)
        code, cpu = watch(mode, child, control, job[0])
        if code is None:
            break
        control.send(REPLY.pack(job[0], code, cpu))
    folder.remove()


def settle(mode: str) -> None:
    """Prepare what every child inherits."""
    atexit._clear()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which the first process of a pid namespace ignores
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    for number in range(64):
        if mode != "none" and libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # past the last capability
    if mode != "none":
        check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    sys.argv[:] = ["program.py"]
    os.umask(0o077)
    if mode == "mapped":
        os.setgroups([])
    for kind, value in ALWAYS.items():
        resource.setrlimit(kind, (value, value))
    open_streams()
    linecache.clearcache()
    gc.collect()
    gc.freeze()


def start(mode: str, own: int) -> int:
    """Fork, in a new pid namespace unless mode is none.

    Libc's fork is called directly: what `os.fork` adds is for processes with threads, of which this one has none, and
    costs as much again.
    """
    if mode != "none":
        check(libc.setns(own, CLONE_NEWPID))  # undoes the last unshare, which only one child may use
        check(libc.unshare(CLONE_NEWPID))
    child = int(libc.fork())
    if child < 0:
        check(child)
    return child


def watch(mode: str, child: int, control: socket.socket, number: int) -> tuple[int | None, float]:
    """Wait for the child, killing it when the caller says so or is gone. The end of a pid namespace's first process
    is reported when all others in it are dead.
    """
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(control, select.POLLIN)
    alive, here = True, True
    while alive:
        ready = {fd for fd, _ in poll.poll()}
        alive = handle not in ready
        if alive and control.fileno() in ready:
            data = control.recv(HEADER.size)
            here = here and len(data) == KILL.size
            if not here or KILL.unpack(data)[0] == number:
                os.kill(child, signal.SIGKILL)
                poll.unregister(control)
    os.close(handle)
    if mode == "none":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return (code if here else None), usage.ru_utime + usage.ru_stime


def run(mode: str, job: tuple[int, ...], fds: list[int], folder: str) -> typing.NoReturn:
    """Be the child: give up rights, load the program, run its tests."""
    _, kind, tests, cpu, memory, processes, size = job
    confined, state, source, compiled, *files = fds
    try:
        confine(mode, cpu, memory, processes, size, folder)
        os.pwrite(confined, b"\1", 0)
        os.close(confined)  # a program must not be able to say that its sandbox failed
    except BaseException:
        os._exit(1)
    code = 1
    try:
        per_test = 3 if kind == STDIO else 4
        program = load(source, compiled)
        for number in range(tests):
            if number:
                open_streams()  # the first test has the server's, which nobody used
            code = run_test(program, kind, files[number * per_test : (number + 1) * per_test])
            with contextlib.suppress(OSError):  # the program may have closed it, at its own cost
                os.pwrite(state, ENDED.pack(code + 1), number * ENDED.size)
    except BaseException:  # the program broke what this needs, e.g. closed files or spent all memory
        code = code or 1
    finally:
        os._exit(code)


def confine(mode: str, cpu: int, memory: int, processes: int, size: int, folder: str) -> None:
    """Give up what a program must not have, in this process and for good."""
    os.chdir(folder)
    os.setsid()  # signals to the process group do not reach the server
    if mode == "none":
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
    limit = resource.setrlimit
    limit(resource.RLIMIT_FSIZE, (size, size))
    limit(resource.RLIMIT_CPU, (cpu, cpu))
    limit(resource.RLIMIT_AS, (memory, memory))
    if mode != "none":  # counted by user, and in the sandbox a user's processes are those of this program
        own = 0 if mode == "mapped" else 1
        limit(resource.RLIMIT_NPROC, (processes + own, processes + own))
    if mode == "mapped":
        os.setresgid(1, 1, 1)
        os.setresuid(1, 1, 1)
    if mode != "none":
        check(libc.capset(*NO_CAPABILITIES))


def load(source: int, compiled: int) -> types.CodeType | BaseException:
    """Compile the program, or take what the first child of this program compiled; closes both files.

    Both happen before any line of the program runs, so the file holds the compiler's work and nothing else.
    """
    code: types.CodeType | BaseException
    try:
        stored = read(compiled)
        if stored[: LENGTH.size] == LENGTH.pack(len(stored) - LENGTH.size):
            code = marshal.loads(stored[LENGTH.size :])
        else:
            code = compile(read(source), "program.py", "exec", dont_inherit=True)
            keep(compiled, marshal.dumps(code))
    except BaseException as error:
        code = error
    os.close(source)
    os.close(compiled)
    return code


def keep(fd: int, compiled: bytes) -> None:
    """Write the length last: a child may be killed halfway."""
    if os.pwrite(fd, compiled, LENGTH.size) == len(compiled):
        os.pwrite(fd, LENGTH.pack(len(compiled)), 0)


def read(fd: int) -> bytes:
    """Read all of a file."""
    size = os.stat(fd).st_size
    return os.pread(fd, size, 0)


def run_test(program: types.CodeType | BaseException, kind: int, files: list[int]) -> int:
    """Run one test on its own stdin, stdout and stderr; returns the exit code."""
    spec, answer = b"", -1
    if kind == CALL:
        spec, answer = read(files[0]), files[3]
        os.close(files[0])
        files[0] = os.open(os.devnull, os.O_RDONLY)
    for number in range(3):
        os.dup2(files[number], number)
        os.close(files[number])
    output = sys.stdout
    try:
        if isinstance(program, BaseException):
            raise program.with_traceback(None)
        if kind == STDIO:
            execute(program, "__main__")
        else:
            reply = call(execute(program, "solution"), spec)
            os.pwrite(answer, reply, 0)
        code = 0
    except SystemExit as leaving:
        code = exit_code(leaving.code)
    except BaseException:
        traceback.print_exc(limit=-20)
        code = 1
    return finish(code, output)


def open_streams() -> None:
    """Make fresh text streams on the standard descriptors."""
    modes = {
        "stdin": ("r", "surrogateescape"),
        "stdout": ("w", "surrogateescape"),
        "stderr": ("w", "backslashreplace"),
    }
    for fd, (name, (mode, errors)) in enumerate(modes.items()):
        stream = open(fd, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def execute(program: types.CodeType, name: str) -> dict[str, typing.Any]:
    """Run the module in a namespace of its own."""
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    exec(program, module.__dict__)
    return module.__dict__


def call(namespace: dict[str, typing.Any], spec: bytes) -> bytes:
    """Call the function and write what it returns as JSON."""
    name, args, kwargs = json.loads(spec)
    first, _, method = name.partition(".")
    function = namespace[first]
    if method:
        function = getattr(function(), method)
    return encode(function(*args, **kwargs)).encode("utf-8", "surrogateescape")


encode = json.JSONEncoder(ensure_ascii=True).encode


def exit_code(value: object) -> int:
    """Do as the interpreter does at its end."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    print(value, file=sys.stderr)
    return 1


def finish(code: int, output: typing.TextIO) -> int:
    """Wait for threads, run what was registered for the end, write out what is buffered: as the interpreter does."""
    try:
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        if not output.closed:
            output.flush()
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc(limit=-20)
        code = code or 1
    with contextlib.suppress(BaseException):
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)
