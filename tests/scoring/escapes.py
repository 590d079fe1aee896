"""Attempts to break out of the sandbox, each a real program, and what shows on the host that it failed.

A program says `tried` once it has made its attempt, and `ESCAPED` if that worked. What the host can see for itself
(verdicts, processes, files, connections) is checked there.
"""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from concordant.scoring.sandbox import CallTest, Limits, Program, Sandbox, StdioTest

LIMITS = Limits(cpu_seconds=1, wall_seconds=1.0, memory_mb=256, processes=12, output_bytes=50_000, file_mb=2)
SECRET = "canary-5d1f07"
WRONG = [StdioTest("1", "the right answer")]


@dataclass(frozen=True)
class Escape:
    """One attempt: `code` after `before`, on the same slot."""

    name: str
    code: str
    before: str = ""
    tests: Sequence[StdioTest | CallTest] = ()
    """Tests that must fail; without any the program is run once and must say `tried` and not `ESCAPED`."""
    status: tuple[str, ...] = ("finished",)
    """How a single run may end."""
    silent: bool = False
    """The program cannot say `tried` (it dies in the attempt); its status says it."""
    passing: bool = False
    """The tests must pass instead: they ask for what an untouched process answers."""


def attempts(*lines: str, setup: str = "") -> str:
    """Compose a program that makes each attempt; one that raises nothing has escaped."""
    body = [
        f"try:\n    {line}\n    print('ESCAPED', {line!r})\nexcept Exception as e:\n    print(type(e).__name__, e)"
        for line in lines
    ]
    return "\n".join([setup, *body, "print('tried')"])


NONZERO = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def needs_failure(result):
    if result == -1: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def call(*a): needs_failure(libc.syscall(*a))
"""

SCAN = """
import ctypes, os, re
libc = ctypes.CDLL(None)
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
r, w = os.pipe()
wanted = re.compile(@PATTERN@)
libc.sbrk.restype = ctypes.c_void_p
centres = {id(object()), id([]), id(wanted), id(os), ctypes.addressof(ctypes.create_string_buffer(1 << 18))}
centres.add(libc.sbrk(0) - (8 << 20))
pages = {(c & ~4095) + k * 4096 for c in centres for k in range(-2048, 2048)}
seen = 0
for page in sorted(pages):
    if libc.write(w, page, 4096) == 4096:
        seen += 1
        if wanted.search(os.read(r, 4096)):
            print('ESCAPED: the text is in memory at', hex(page)); break
print('tried', seen > 500)
"""


def scan(text: str) -> str:
    """Compose a program that searches its memory, page by page, for a text that its own source does not contain."""
    return SCAN.replace("@PATTERN@", repr(f"[{text[0]}]{text[1:]}".encode()))


def run_escape(sandbox: Sandbox, case: Escape, places: dict[str, str]) -> str:
    """Make one attempt; returns what is wrong, empty if it was contained."""
    fill = _Filler(places)
    if case.before:
        sandbox.run(Program(fill(case.before)))
    if case.tests:
        results = sandbox.run_tests(fill(case.code), case.tests)
        wrong = [r for r in results if r.passed is not case.passing]
        return f"verdict {[r.passed for r in results]}: {wrong[0].reason}" if wrong else ""
    result = sandbox.run(Program(fill(case.code)))
    if result.status not in case.status:
        return f"ended as {result.status}: {result.reason} {result.stderr[-200:]}"
    if "ESCAPED" in result.stdout or SECRET in result.stdout + result.stderr:
        return result.stdout[-300:]
    if not case.silent and "tried" not in result.stdout:
        return f"made no attempt: {result.stdout[-200:]} {result.stderr[-200:]}"
    longest = sandbox.limits.output_bytes
    return "kept too much output" if max(len(result.stdout), len(result.stderr)) > longest else ""


class _Filler:
    def __init__(self, places: dict[str, str]):
        self.places = places

    def __call__(self, code: str) -> str:
        for name, value in self.places.items():
            code = code.replace(name, value)
        return code


class Bait:
    """What programs must not reach: a file, an environment variable, a TCP and an abstract listener on the host."""

    def __init__(self, folder: Path):
        self.file = folder / "secret.txt"
        self.file.write_text(SECRET)
        self.file.chmod(0o644)
        self.visits: list[str] = []
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.name = f"concordant-bait-{os.getpid()}-{time.monotonic_ns()}"
        self.abstract.bind("\0" + self.name)
        self.abstract.listen()
        for kind, listener in (("tcp", self.tcp), ("abstract", self.abstract)):
            threading.Thread(target=self._listen, args=(kind, listener), daemon=True).start()

    def _listen(self, kind: str, listener: socket.socket) -> None:
        while True:
            try:
                listener.accept()
            except OSError:
                return
            self.visits.append(kind)

    @property
    def places(self) -> dict[str, str]:
        return {
            "@PATH@": str(self.file),
            "@FOLDER@": str(self.file.parent),
            "@PORT@": str(self.tcp.getsockname()[1]),
            "@ABSTRACT@": self.name,
            "@PID@": str(os.getpid()),
            "@TESTS@": str(Path(__file__).resolve()),
        }

    def touched(self) -> str:
        """What was reached, empty if nothing."""
        found = sorted(entry.name for entry in self.file.parent.iterdir())
        if found != ["secret.txt"] or self.file.read_text() != SECRET:
            return f"the host's folder has changed: {found}"
        return f"connections came: {self.visits}" if self.visits else ""

    def close(self) -> None:
        for listener in (self.tcp, self.abstract):
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@contextmanager
def baited() -> Iterator[Bait]:
    """Lay out the bait, with the secret in this process's environment too."""
    os.environ["CONCORDANT_BAIT"] = SECRET
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        bait = Bait(Path(folder))
        try:
            yield bait
        finally:
            bait.close()
            del os.environ["CONCORDANT_BAIT"]


def servers(sandbox: Sandbox) -> list[int]:
    """Host process numbers of idle slots: bubblewrap outside, the fork server inside."""
    outer = [slot.server.process.pid for slot in sandbox._free.queue if slot is not None]
    inner = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in outer]
    return outer + [int(pid) for children in inner for pid in children]


def namespace_of(process: int) -> str:
    """Name of the user namespace a process lives in. Nothing inside can leave that of its sandbox."""
    return os.readlink(f"/proc/{process}/ns/user")


def residents(namespace: str) -> set[int]:
    """Host process numbers of all in a user namespace."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "ns/user") == namespace:
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


_DEEP = "[" * 20_000

ESCAPES: tuple[Escape, ...] = (
    # the verdict
    Escape("exit(0) before answering", "exit(0)", tests=WRONG),
    Escape(
        "os._exit(0) in a call that expects None",
        "import os\ndef f(): os._exit(0)",
        tests=[CallTest("f", [], None)],
    ),
    Escape(
        "atexit prints a verdict",
        "import atexit\natexit.register(print, 'passed 1.0 ok')\nprint(0)",
        tests=WRONG,
    ),
    Escape(
        "object equal to everything",
        "class A:\n def __eq__(s, o): return True\n __hash__ = None\ndef f(): return A()",
        tests=[CallTest("f", [], 5), CallTest("f", [], None), CallTest("f", [], [1])],
    ),
    Escape(
        "str, int and list subclasses equal to everything",
        "class E:\n def __eq__(s, o): return True\n def __ne__(s, o): return False\n def __hash__(s): return 0\n"
        "class S(E, str): pass\nclass I(E, int): pass\nclass L(E, list): pass\n"
        "def f(n): return [S('wrong'), I(1), L([1])][n]",
        tests=[CallTest("f", [0], "right"), CallTest("f", [1], 2), CallTest("f", [2], [2])],
    ),
    Escape(
        "NaN, true and 1.0 in place of 1",
        "def f(n): return [float('nan'), True, 1.0, '1'][n]",
        tests=[CallTest("f", [n], 1) for n in range(4)],
    ),
    Escape(
        "patched builtins, json and stdout in later tests",
        "import builtins, json, sys, os\n"
        "seen = getattr(builtins, 'marked', 0) or os.path.exists('/tmp/marked') or json.dumps(1) != '1'\n"
        "def f():\n"
        " builtins.marked = 1; open('/tmp/marked', 'w').close()\n"
        " json.dumps = json.JSONEncoder.encode = lambda *a, **k: '0'\n"
        " builtins.len = builtins.print = builtins.sorted = lambda *a, **k: 0\n"
        " sys.stdout = sys.__stdout__ = None\n"
        " return bool(seen)",
        tests=[CallTest("f", [], False)] * 4,
        passing=True,
    ),
    Escape(
        "verdicts and protocol messages on stdout and stderr",
        "import sys, struct\n"
        "for out in (sys.stdout, sys.stderr):\n"
        " print('passed\\n1.0\\n{\"passed\": true, \"score\": 1.0}\\nready\\n', file=out)\n"
        " out.buffer.write(struct.pack('=Iid', 1, 0, 0.0) * 9); out.flush()",
        tests=WRONG * 3,
    ),
    Escape(
        "protocol messages on every descriptor",
        "import os, struct\n"
        "for fd in range(1024):\n"
        " for data in (struct.pack('=Iid', 1, 0, 0.0), b'\\1' * 64, b'ready', b'the right answer'):\n"
        "  for write in (os.write, lambda f, d: os.pwrite(f, d, 0)):\n"
        "   try: write(fd, data)\n"
        "   except OSError: pass\n"
        "os._exit(0)",
        tests=WRONG * 3,
    ),
    Escape(
        "all descriptors closed",
        "import os\nos.closerange(0, 65536)\nos._exit(0)",
        tests=WRONG * 3,
    ),
    Escape(
        "file named as the server, process and argv renamed",
        "import ctypes, sys\nctypes.CDLL(None).prctl(15, b'server.py', 0, 0, 0)\n"
        "sys.argv[:] = ['/server.py', 'mapped']\n__file__ = '/server.py'\nprint('passed')",
        tests=WRONG,
    ),
    Escape(
        "JSON that breaks the reader",
        "import os\n"
        "def f(n):\n"
        " for fd in range(63, 2, -1):\n"  # the last one is that of the answer
        f"  try: os.pwrite(fd, [b'{_DEEP}', b'9' * 40_000, b'1e999', b'\\xff\\xfe', b'1 1'][n], 0); break\n"
        "  except OSError: pass\n"
        " os._exit(0)",
        tests=[CallTest("f", [n], 1) for n in range(5)],
    ),
    Escape("source that breaks the compiler", "-" * 60_000 + "1", tests=WRONG),
    Escape("source of nested brackets", "(" * 60_000, tests=WRONG * 2),
    # what was expected, and other programs
    Escape(
        "search of memory for the expected answer",
        scan("the right answer"),
        tests=[StdioTest("", "tried the right answer")],
    ),
    Escape(
        "search of memory for an earlier program",
        scan("remember-this-solution-4711"),
        before="solution = 'remember-this-solution-4711' * 200\nprint(solution)",
    ),
    Escape(
        "search of memory for what an earlier program called its files",
        scan("remember-this-name-4712"),
        before="for i in range(90): open(f'/tmp/{i}-remember-this-name-4712', 'w').close()",
    ),
    Escape(
        "sitecustomize, conftest and modules for the next program",
        attempts(
            "import sitecustomize", "import usercustomize", "import conftest", "import planted", setup="import sys"
        )
        + "\nimport json\nprint('ESCAPED' if hasattr(json, 'planted') else '')",
        before="import os, sys\n"
        "for folder in ['.', '/tmp', '/python/lib/python3.11/site-packages', *sys.path]:\n"
        " for name in ('sitecustomize', 'usercustomize', 'conftest', 'json', 'planted'):\n"
        "  try: open(f'{folder}/{name}.py', 'w').write('planted = 1')\n"
        "  except OSError: pass",
    ),
    Escape(
        "files, modes and attributes left in /tmp",
        "import os\nleft = os.listdir('/tmp') + os.listxattr('/tmp')\n"
        "s = os.stat('/tmp')\n"
        "print('ESCAPED' if left or s.st_mode & 0o7777 != 0o1777 or s.st_mtime < 9 else '', left, 'tried')",
        before="import os\nos.makedirs('/tmp/a/b'); open('/tmp/.hidden', 'w').write('x')\n"
        "for f in (lambda: os.chmod('/tmp', 0o700), lambda: os.utime('/tmp', (1, 1)),\n"
        " lambda: os.setxattr('/tmp', 'user.x', b'1')):\n"
        " try: f()\n"
        " except OSError: pass",
    ),
    Escape(
        "shared memory left behind",
        attempts(
            "call(29, 4711, 0, 0)",
            "from multiprocessing import shared_memory as m; m.SharedMemory('left')",
            "os.stat('/dev/shm/left')",
            setup=NONZERO,
        ),
        before=NONZERO + "libc.shmget(4711, 4096, 0o1666)\n"
        "from multiprocessing import shared_memory as m\ns = m.SharedMemory('left', True, 64)\nos._exit(0)",
    ),
    Escape(
        "search for the tests and their files",
        attempts(
            "open('@TESTS@')", "open('tests/scoring/escapes.py')", "import concordant", "import tests"
        ),
    ),
    # processes
    Escape(
        "daemon by double fork",
        "import os, time\n"
        "if os.fork() == 0:\n"
        " os.setsid()\n"
        " if os.fork() == 0:\n"
        "  time.sleep(0.3)\n"
        "  while True:\n"
        "   open('/tmp/alive', 'a').write('x'); os.write(1, b'ESCAPED'); time.sleep(0.05)\n"
        " os._exit(0)\n"
        "print('tried')",
    ),
    Escape(
        "a daemon is there for the next program",
        "import os, time\ntime.sleep(0.3)\nprint('ESCAPED' if os.listdir('/tmp') else '')\n"
        "for pid in range(2, 400):\n"
        " try: os.kill(pid, 0); print('ESCAPED', pid)\n"
        " except ProcessLookupError: pass\n"
        "print('tried')",
        before="import os, time\n"
        "if os.fork() == 0:\n"
        " os.setsid()\n"
        " while True:\n"
        "  open('/tmp/alive', 'a').write('x'); time.sleep(0.02)",
    ),
    Escape(
        "fork bomb",
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        status=("timeout",),
        silent=True,
    ),
    Escape(
        "more processes than allowed",
        "import os, time\nn = 0\n"
        "try:\n"
        " while True:\n"
        "  if os.fork() == 0: time.sleep(9); os._exit(0)\n"
        "  n += 1\n"
        "except OSError: print('ESCAPED' if n > 12 else '', n, 'tried', flush=True)\nos._exit(0)",
    ),
    Escape(
        "more threads than allowed",
        "import threading, time, os\nn = 0\n"
        "try:\n"
        " while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); n += 1\n"
        "except RuntimeError: print('ESCAPED' if n > 12 else '', n, 'tried', flush=True)\nos._exit(0)",
    ),
    Escape(
        "signals to everyone",
        "import os, signal\n"
        "for s in (9, 15, 2, 19, 1, 14):\n"
        " for pid in (-1, 0, os.getppid(), 2, @PID@):\n"
        "  if pid != os.getpid():\n"
        "   try: os.kill(pid, s); print(pid, s)\n"
        "   except OSError: pass\n"
        "print('tried')",
        status=("finished", "killed", "failed"),
        silent=True,
    ),
    Escape(
        "stops itself and its children",
        "import os, signal\n"
        "if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\nos.wait()",
        status=("timeout",),
        silent=True,
    ),
    Escape(
        "ptrace and reading other processes",
        attempts(
            *(f"call(101, 16, {pid}, 0, 0)" for pid in (2, 3, "@PID@")),
            "call(101, 0, 0, 0, 0)",
            "call(310, 1, 0, 0, 0, 0, 0)",
            "os.pidfd_open(@PID@)",
            "call(438, os.pidfd_open(1), 0, 0)",
            setup=NONZERO,
        ),
    ),
    Escape(
        "inherited descriptors",
        "import os, stat\nmore = []\n"
        "for fd in range(4096):\n"
        " try: s = os.fstat(fd)\n"
        " except OSError: continue\n"
        " if fd > 2: more.append((fd, oct(s.st_mode)))\n"
        "# one is there: the memory file with the program's own progress\n"
        "print('ESCAPED' if [mode for _, mode in more] != ['0o100777'] else '', more, 'tried')",
    ),
    # files
    Escape(
        "symbolic and hard links out of /tmp",
        attempts(
            "open('/tmp/a/@PATH@')",
            "open('/tmp/b@PATH@')",
            "os.link('/server.py', '/tmp/c'); open('/tmp/c', 'a')",
            "open('../../../../..@PATH@')",
            "open('/tmp/a/etc/passwd')",
            setup="import os\nos.symlink('/', '/tmp/a'); os.symlink('/proc/1/root', '/tmp/b')",
        ),
    ),
    Escape(
        "files of the host",
        attempts(
            *(f"open({name!r})" for name in ("/etc/shadow", "/etc/passwd", "/etc/hostname", "@PATH@", "/bin/sh")),
            *(f"os.listdir({name!r})" for name in ("/root", "/home", "/opt", "/etc", "/var", "/sys", "@FOLDER@")),
            setup="import os",
        ),
    ),
    Escape(
        "/proc and the environment of others",
        attempts(
            "os.listdir('/proc')",
            *(f"open('/proc/{process}/environ')" for process in ("self", "1", "@PID@")),
            setup="import os\nprint(os.environ)",
        ),
    ),
    Escape(
        "writing outside /tmp",
        attempts(
            *(
                f"open('{folder}/planted', 'w')"
                for folder in ("", "/usr", "/usr/lib", "/lib64", "/python", "/python/lib", "/dev", "@FOLDER@")
            ),
            "[open(f'{p}/planted', 'w') for p in os.sys.path[-1:]]",
            "open('/server.py', 'a')",
            "os.chmod('/server.py', 0o777)",
            "os.mkdir('/x')",
            "os.remove('/server.py')",
            "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))",
            setup="import os",
        ),
    ),
    Escape(
        "filling the disk",
        "import os\nn = 0\n"
        "try:\n"
        " for i in range(100):\n"
        "  with open(f'/tmp/{i}', 'wb', buffering=0) as f:\n"
        "   for _ in range(16): n += f.write(b'x' * 65536)\n"
        "except OSError as e: print(e)\n"
        "print('ESCAPED' if n > 2 << 20 else '', n, 'tried')",
    ),
    Escape(
        "one file without end",
        "import os\nos.truncate(os.open('/tmp/x', os.O_CREAT | os.O_RDWR), 1 << 40)",
        status=("failed",),
        silent=True,
    ),
    Escape(
        "files without number",
        "n = 0\n"
        "try:\n"
        " while True: open(f'/tmp/{n}', 'w').close(); n += 1\n"
        "except OSError: print('ESCAPED' if n > 5000 else '', n, 'tried')",
    ),
    # network
    Escape(
        "TCP to the host's loopback",
        attempts(
            "s.create_connection(('127.0.0.1', @PORT@), 0.5)",
            "s.create_connection(('::1', @PORT@), 0.5)",
            setup="import socket as s",
        ),
    ),
    Escape(
        "names and datagrams to the world",
        attempts(
            "s.getaddrinfo('example.com', 80)",
            "s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
            "s.create_connection(('1.1.1.1', 443), 0.3)",
            "s.socket(s.AF_INET, s.SOCK_RAW, 1)",
            setup="import socket as s",
        ),
    ),
    Escape(
        "abstract and named Unix sockets of the host",
        attempts(
            "s.socket(s.AF_UNIX).connect('\\0@ABSTRACT@')",
            "s.socket(s.AF_UNIX).connect('/run/systemd/private')",
            "s.socket(s.AF_UNIX).connect('/var/run/docker.sock')",
            setup="import socket as s",
        ),
    ),
    Escape(
        "socket families that no network namespace confines",
        attempts(
            *(f"s.socket({family}, {kind})" for family, kind in ((40, 1), (16, 3), (17, 3), (38, 5), (31, 1), (44, 1))),
            setup="import socket as s",
        ),
    ),
    # resources
    Escape(
        "huge output",
        "print('x' * 40_000_000)",
        status=("output", "failed"),
        silent=True,
    ),
    Escape(
        "endless output without line ends",
        "import os\nwhile True:\n try: os.write(1, b'x' * 65536)\n except OSError: pass",
        status=("output", "timeout"),
        silent=True,
    ),
    Escape(
        "memory without end",
        "blocks = []\n"
        "try:\n"
        " while True: blocks.append(bytearray(1 << 24))\n"
        "except MemoryError:\n"
        " n = len(blocks); blocks = None; print('ESCAPED' if n > 16 else '', n, 'tried')",
    ),
    Escape(
        "memory that no limit counts",
        attempts("os.memfd_create('x')", "call(447, 0)", "call(29, 0, 1 << 30, 0o1666)", setup=NONZERO),
    ),
    Escape(
        "stack without end",
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n def __repr__(s): return repr(s)\nrepr(A())",
        status=("killed", "failed"),
        silent=True,
    ),
    Escape(
        "processor time without end",
        "while True: pass",
        status=("timeout",),
        silent=True,
    ),
    Escape(
        "one C call without end",
        "9 ** 9 ** 9 ** 9",
        status=("timeout", "failed", "killed"),
        silent=True,
    ),
    Escape("a crash of the interpreter", "import ctypes\nctypes.string_at(0)", status=("killed",), silent=True),
    # rights
    Escape(
        "raising its own limits",
        attempts(
            *(
                f"r.setrlimit(r.RLIMIT_{name}, (1 << 40, 1 << 40))"
                for name in ("CPU", "AS", "NPROC", "FSIZE", "NOFILE", "MEMLOCK")
            ),
            "os.nice(-5)",
            "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
            setup="import os, resource as r",
        ),
    ),
    Escape(
        "namespaces, mounts and roots",
        attempts(
            *(f"call(272, {flag})" for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x10020000)),
            *(f"call(56, {flag | 17}, 0, 0, 0, 0)" for flag in (0x10000000, 0x20000000, 0x40000000)),
            "call(435, ctypes.create_string_buffer(88), 88)",
            "needs_failure(libc.mount(b'proc', b'/tmp', b'proc', 0, None))",
            "needs_failure(libc.mount(b'/', b'/tmp', None, 4096, None))",
            "needs_failure(libc.mount(None, b'/', None, 32 | 4096, None))",
            "needs_failure(libc.umount2(b'/tmp', 2))",
            "os.chroot('/tmp')",
            "call(155, b'/tmp', b'/tmp')",
            "needs_failure(libc.setns(os.pidfd_open(1), 0x20000000))",
            "needs_failure(libc.setns(os.pidfd_open(1), 0x10000000))",
            setup=NONZERO,
        ),
    ),
    Escape(
        "becoming root, regaining capabilities",
        attempts(
            "os.setuid(0)",
            "os.setresgid(0, 0, 0)",
            "os.setgroups([0])",
            "needs_failure(libc.capset(h, ctypes.create_string_buffer(b'\\xff' * 24, 24)))",
            "needs_failure(libc.prctl(47, 2, 21, 0, 0))",
            "needs_failure(libc.prctl(39, 0, 1, 0, 0)) or 1 // (1 - libc.prctl(39, 0, 0, 0, 0))",
            setup=NONZERO + "import struct\nh = ctypes.create_string_buffer(struct.pack('=Ii', 0x20080522, 0))",
        ),
    ),
    Escape(
        "kernel interfaces with a record",
        attempts(
            *(f"call({n}, 0, 0, 0, 0, 0)" for n in (425, 321, 298, 323, 250, 248, 175, 246, 169, 103, 304, 135, 428)),
            "__import__('fcntl').ioctl(0, 0x5412, b'x')",
            setup=NONZERO,
        ),
    ),
)  # fmt: skip
