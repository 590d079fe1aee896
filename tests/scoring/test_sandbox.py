"""The sandbox: what programs get, what comes back, what happens when they or it misbehave."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from concordant.scoring.sandbox import (
    CallTest,
    Limits,
    Program,
    Sandbox,
    SandboxError,
    StdioTest,
    available,
    bubblewrap,
    isolation,
    read_tests,
    seccomp,
    set_isolation,
    shared,
)
from concordant.scoring.sandbox.judge import same, same_tokens
from tests.scoring.escapes import ESCAPES, LIMITS, baited, namespace_of, residents, run_escape, scan, servers

SUM = "print(sum(map(int, input().split())))"

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module", params=["bubblewrap", "none"])
def anywhere(request) -> Iterator[Sandbox]:
    """What must hold at both levels."""
    with Sandbox(request.param, slots=1, limits=LIMITS) as box:
        yield box


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(slots=1, limits=LIMITS) as box:
        yield box


def test_bubblewrap_works_here():
    assert available() == "", "these tests need the package bubblewrap and permission to make user namespaces"


def test_output_and_exit_codes(anywhere):
    ran = anywhere.run(Program("import sys\nprint(input()[::-1])\nprint('note', file=sys.stderr)", "abc"))
    assert (ran.stdout, ran.stderr, ran.status, ran.reason) == ("cba\n", "note\n", "finished", "")
    assert 0 < ran.seconds < 5
    for code, reason in [
        ("exit(3)", "exited with code 3"),
        ("import sys; sys.exit('no')", "exited with code 1: no"),
        ("1 / 0", "exited with code 1: ZeroDivisionError: division by zero"),
        ("x = (", "exited with code 1: SyntaxError: '(' was never closed"),
        ("input()", "exited with code 1: EOFError: EOF when reading a line"),
        ("import os; os._exit(7)", "exited with code 7"),
    ]:
        ran = anywhere.run(Program(code))
        assert (ran.status, ran.reason) == ("failed", reason)
    assert anywhere.run(Program("exit()")).status == "finished"


def test_endings_by_force(anywhere):
    for code, status, reason in [
        ("while True: pass", "timeout", "timed out after 1 s"),
        ("import time; time.sleep(60)", "timeout", "timed out after 1 s"),
        ("import ctypes; ctypes.string_at(0)", "killed", "killed by signal SIGSEGV"),
        ("print('x' * 50_000)", "output", "wrote more than 50000 bytes"),
    ]:
        ran = anywhere.run(Program(code))
        assert (ran.status, ran.reason) == (status, reason)
        assert ran.seconds < 2.5
    assert anywhere.run(Program("print('x' * 49_999)")).status == "finished"
    lean = Limits(cpu_seconds=1, wall_seconds=20)
    with Sandbox(anywhere.level, slots=1, limits=lean) as box:
        assert box.run(Program("while True: pass")).reason == "used up 1 s of CPU time"


def test_a_program_is_an_ordinary_one(anywhere):
    code = (
        "import sys, atexit, threading, dataclasses, pickle, os, multiprocessing\n"
        "atexit.register(print, 'end')\n"
        "@dataclasses.dataclass\nclass P:\n x: int = 1\n"
        "assert pickle.loads(pickle.dumps(P(2))) == P(2) and __name__ == '__main__'\n"
        "threading.Thread(target=print, args=('thread',)).start()\n"
        "open('note', 'w').write('x'); assert os.listdir('.') == os.listdir(os.environ['HOME']) == ['note']\n"
        "lock = multiprocessing.Lock()\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sys.stdin.read().split(), len(sys.argv))\n"
        "sys.stdin.seek(0); assert sys.stdin.readline() == 'a b\\n' and os.pread(0, 9, 0) == b'a b\\nc'\n"
        "def deep(n): return 0 if n == 0 else 1 + deep(n - 1)\n"
        "sys.setrecursionlimit(20_000); print(deep(15_000))\n"
    )
    ran = anywhere.run(Program(code, "a b\nc"))
    assert ran.status == "finished", ran.stderr
    assert sorted(ran.stdout.split("\n")) == ["", "15000", "5 ['a', 'b', 'c'] 1", "end", "thread"]
    assert ran.stdout.endswith("end\n")


@pytest.mark.parametrize("isolated", [True, False])
def test_every_test_runs_whatever_the_others_do(anywhere, isolated):
    code = (
        "import os, time\nn = int(input())\n"
        "if n == 2: 1 / 0\n"
        "if n == 4: os._exit(0)\n"
        "if n == 5: os.kill(os.getpid(), 11) or __import__('ctypes').string_at(0)\n"
        "if n == 6: time.sleep(60)\n"
        "if n == 8: exit(2)\n"
        "print(n * n)"
    )
    tests = [StdioTest(str(n), str(n * n)) for n in range(10)]
    results = anywhere.run_tests(code, tests, isolated=isolated)
    assert [r.passed for r in results] == [n not in (2, 4, 5, 6, 8) for n in range(10)]
    assert [r.result.status for r in results] == [
        *("finished", "finished", "failed", "finished", "finished"),
        *("killed", "timeout", "finished", "failed", "finished"),
    ]
    assert results[6].reason == "timed out after 1 s"
    assert results[4].reason == "printed '', expected '16'"


def test_isolated_tests_share_nothing_and_others_say_so(sandbox):
    code = (
        "import json, os\n"
        "def f():\n"
        " json.seen = getattr(json, 'seen', 0) + 1\n"
        " open(f'/tmp/{json.seen}', 'w').close()\n"
        " return [json.seen, len(os.listdir('/tmp'))]"
    )
    tests = [CallTest("f", [], [1, 1])] * 4
    assert [r.passed for r in sandbox.run_tests(code, tests)] == [True] * 4
    shared_values = [r.result.value for r in sandbox.run_tests(code, tests, isolated=False)]
    assert shared_values == ["[1, 1]", "[2, 2]", "[3, 3]", "[4, 4]"]
    assert sandbox.run_tests(code, tests, isolated=False)[
        0
    ].passed  # another run of the same program is apart


def test_kinds_may_be_mixed_and_suites_longer_than_a_batch(sandbox):
    code = "def double(x): return 2 * x\nif __name__ == '__main__': print(double(int(input())))"
    tests = [
        StdioTest(str(n), str(2 * n)) if n % 20 < 10 else CallTest("double", [n], 2 * n) for n in range(90)
    ]
    for isolated in (True, False):
        assert all(r.passed for r in sandbox.run_tests(code, tests, isolated=isolated))
    assert sandbox.run_tests(code, []) == []


def test_call_tests(sandbox):
    code = (
        "class Solution:\n def add(self, a, b=0): return a + b\n"
        "def pair(): return (1, [2.0, None, {'a': True}])\n"
        "def odd(): return {1, 2}\n"
        "def text(): return 'é\\ud800'\n"
        "def never(): raise ValueError('no')"
    )
    tests = [
        CallTest("Solution.add", [2], 5, {"b": 3}),
        CallTest("pair", [], (1, [2.0, None, {"a": True}])),
        CallTest("odd", [], [1, 2]),
        CallTest("text", [], "é\ud800"),
        CallTest("never", [], None),
        CallTest("absent", [], None),
    ]
    results = sandbox.run_tests(code, tests)
    assert [r.passed for r in results] == [True, True, False, True, False, False]
    assert results[2].reason == "exited with code 1: TypeError: Object of type set is not JSON serializable"
    assert results[4].reason == "exited with code 1: ValueError: no"
    assert results[5].reason == "exited with code 1: KeyError: 'absent'"
    with pytest.raises(SandboxError, match="arguments of pair must be JSON"):
        sandbox.run_tests(code, [CallTest("pair", [{1, 2}], None)])


def test_time_for_all_tests_together(sandbox):
    sandbox.run(Program("1"))  # starts it
    begin = time.monotonic()
    results = sandbox.run_tests(
        "import time; time.sleep(0.3); print(1)", [StdioTest("", "1")] * 9, seconds=1.5
    )
    assert time.monotonic() - begin < 2.5
    passed = sum(bool(r.passed) for r in results)
    assert 1 <= passed <= 5 and all(r.passed for r in results[:passed])
    assert results[passed].reason.startswith("timed out after")
    assert {r.reason for r in results[passed + 1 :]} == {"not run: the tests before took all of 1.5 s"}


def test_equal_programs_give_equal_answers():
    code = "print({str(i) for i in range(50)}, __import__('random').random())"
    answers = set()
    for _ in range(2):
        with Sandbox(slots=1) as box:
            answers |= {box.run(Program(code)).stdout.partition("}")[0] for _ in range(2)}
    assert len(answers) == 1


def test_a_dead_server_is_replaced_without_loss(sandbox):
    assert sandbox.run(Program(SUM, "1 2")).stdout == "3\n"
    outer, _ = servers(sandbox)
    os.kill(outer, signal.SIGKILL)
    assert sandbox.run(Program(SUM, "1 2")).stdout == "3\n"
    assert outer not in servers(sandbox)


def test_a_server_that_dies_each_time_leaves_the_result_open(sandbox):
    assert sandbox.run(Program(SUM, "1 2")).stdout == "3\n"
    stop = threading.Event()

    def killer() -> None:
        while not stop.wait(0.2):
            for process in sandboxes():
                os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        (result,) = sandbox.run_tests("while True: pass", [StdioTest("", "1")])
    except SandboxError:
        result = None  # killed while it started
    finally:
        stop.set()
        thread.join()
    assert result is None or (result.passed is None and result.reason.startswith("the sandbox failed"))
    assert sandbox.run(Program(SUM, "1 2")).stdout == "3\n"


def sandboxes() -> list[int]:
    """Outermost processes of the sandboxes that this one started."""
    mine = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    children = [int(child) for path in mine for child in path.read_text().split()]
    return [child for child in children if b"bwrap" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("level", ["bubblewrap", "none"])
def test_nothing_runs_on_when_the_caller_is_killed(level):
    code = (
        "import threading, sys\nfrom concordant.scoring.sandbox import Limits, Program, Sandbox\n"
        f"box = Sandbox({level!r}, slots=1, limits=Limits(wall_seconds=60, cpu_seconds=60))\n"
        "box.run(Program('1'))\n"
        "print(box._free.queue[0].server.process.pid, flush=True)\n"
        "box.run(Program('import os, time\\nif os.fork() == 0: time.sleep(60)\\nwhile True: pass'))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    outer = int(caller.stdout.readline())
    time.sleep(0.5)
    inside = [outer, *map(int, Path(f"/proc/{outer}/task/{outer}/children").read_text().split())]
    everyone = residents(namespace_of(inside[-1])) if level == "bubblewrap" else set(inside)
    assert len(everyone) >= 2
    caller.kill()
    caller.communicate()
    until = time.monotonic() + 5
    while any(map(alive, everyone)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, everyone))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_threads_share_slots():
    with Sandbox(slots=2) as box:
        found: list[str] = []
        work = lambda n: found.append(box.run(Program(SUM, f"{n} {n}")).stdout)  # noqa: E731
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(int, found)) == [2 * n for n in range(8)]
        assert len(servers(box)) == 4
    with pytest.raises(SandboxError, match="closed"):
        box.run(Program("1"))


def test_a_fork_of_the_caller_must_make_its_own(sandbox):
    sandbox.run(Program("1"))
    child = os.fork()
    if child == 0:
        try:
            sandbox.run(Program("1"))
        except SandboxError as error:
            os._exit(0 if "fork" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sandbox.run(Program(SUM, "1 2")).stdout == "3\n"


def test_without_bubblewrap_nothing_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install the package bubblewrap" in available()
    with Sandbox() as box, pytest.raises(SandboxError, match="--unsafe-no-sandbox"):
        box.run(Program("1"))
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    assert "setting up uid map: Permission denied" in available()
    assert "user.max_user_namespaces" in available()
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
    assert "riscv64" in available()


def test_only_an_explicit_call_switches_the_sandbox_off(monkeypatch):
    monkeypatch.setenv("CONCORDANT_SANDBOX", "none")
    assert isolation() == "bubblewrap" and shared().level == "bubblewrap"
    set_isolation("none")
    try:
        assert isolation() == "none" and shared().level == "none"
    finally:
        set_isolation("bubblewrap")
    assert shared() is shared() and shared().level == "bubblewrap"
    for wrong in ("off", ""):
        with pytest.raises(SandboxError, match="bubblewrap, none"):
            set_isolation(wrong)
        with pytest.raises(SandboxError, match="bubblewrap, none"):
            Sandbox(wrong)


def test_attempts_are_real():
    """Without the sandbox they succeed: what stops them is the sandbox, not a fault of theirs."""
    names = ("files of the host", "TCP to the host's loopback", "search for the tests and their files")
    with Sandbox("none", slots=1) as box, baited() as bait:
        for case in ESCAPES:
            if case.name in names or case.name.startswith("abstract"):
                assert "ESCAPED" in run_escape(box, case, bait.places), case.name
        assert sorted(set(bait.visits)) == ["abstract", "tcp"]


def test_the_search_of_memory_finds_what_is_there(sandbox):
    inside = scan("unsandboxed-")  # a word of the server itself
    assert "ESCAPED" in sandbox.run(Program(inside)).stdout


def test_command_line_shows_what_is_given():
    fds: list[int] = []
    with ExitStack() as stack:
        command = bubblewrap._command(fds, stack)
    words = " ".join(command)
    for needed in (
        "--unshare-net",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ):
        assert needed in command
    for needed in (
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--seccomp",
        "--cap-drop ALL",
        "--remount-ro /",
    ):
        assert needed in words
    for never in ("--proc", "--dev ", "--bind ", "/etc", "/home", "/sys", "--share-net"):
        assert never not in words


def test_filter_covers_what_it_names():
    code = seccomp.program()
    assert len(code) % 8 == 0 and len(code) // 8 < 4096
    numbers = [pair for pair in seccomp.DENIED.values()]
    assert len({x for x, _ in numbers}) == len(numbers)
    assert len({a for _, a in numbers if a is not None}) == sum(a is not None for _, a in numbers)


def test_limits_must_be_positive():
    with pytest.raises(SandboxError, match="limit memory_mb must be positive, got 0"):
        Limits(memory_mb=0)
    with pytest.raises(SandboxError, match="at least one slot"):
        Sandbox(slots=0)


def test_same():
    equal = [(1, 1), (1.5, 1.5), (None, None), ([1, "a"], [1, "a"]), ([1], (1,)), ({"1": 2}, {1: 2})]
    equal += [(float("nan"), float("nan")), (True, True), ({"true": 1}, {True: 1}), (10**30, 10**30)]
    unequal = [(1, True), (1, 1.0), ("1", 1), ([], {}), ([1], [1, 2]), ({"a": 1}, {"b": 1}), (None, False)]
    unequal += [(0.1 + 0.2, 0.3), (float("nan"), 1.0), ("a", ["a"]), (0, None), ([1, [2]], [1, [3]])]
    assert all(same(a, b) for a, b in equal)
    assert not any(same(a, b) for a, b in unequal)
    close = [(0.1 + 0.2, 0.3), (1, 1.0), ([1000.0005], [1000]), (float("inf"), float("inf"))]
    assert all(same(a, b, 1e-6) for a, b in close)
    apart = [(True, 1), (1.1, 1), (float("inf"), 1.0), (float("nan"), 1.0), (10**400, 1.0), ("1", 1.0)]
    assert not any(same(a, b, 1e-6) for a, b in apart)
    deep: list = []
    for _ in range(200):
        deep = [deep]
    assert not same(deep, deep)


def test_same_tokens():
    assert same_tokens("1 2\n3 ", "1\n2 3")
    assert not same_tokens("1 2", "1 2 3")
    assert not same_tokens("1.0", "1")
    assert same_tokens("1.0 yes 2e-3", "1 yes 0.002", 1e-9)
    assert same_tokens("1000000.4", "1000000", 1e-6)
    for odd in ("nan", "inf", "1_0", "0x10", "١٠", "1" * 500, "1e99999"):
        assert not same_tokens(odd, "10", 1e9), odd


def test_read_tests():
    assert read_tests([{"stdin": "1", "expected": "2"}]) == [StdioTest("1", "2")]
    assert read_tests('[{"function": "f", "args": [1], "expected": 2}]', 0.1) == [
        CallTest("f", [1], 2, {}, 0.1)
    ]
    assert read_tests({"inputs": ["1\n", ["2", "3"]], "outputs": ["a", ["b"]]}) == [
        StdioTest("1\n", "a"),
        StdioTest("2\n3", "b"),
    ]
    assert read_tests({"fn_name": "f", "inputs": [[1, 2]], "outputs": [[3]]}) == [CallTest("f", [1, 2], 3)]
    for wrong in (
        5,
        [5],
        [{"stdin": "1"}],
        [{"expected": "1"}],
        [{"stdin": "", "expected": "", "fuzz": 1}],
        {"inputs": [1], "outputs": []},
    ):
        with pytest.raises(SandboxError):
            read_tests(wrong)
