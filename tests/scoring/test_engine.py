"""What the engine promises besides surviving faults."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from concordant.core.errors import RewardError
from concordant.scoring.engine import Engine
from concordant.scoring.outcome import Outcome, Rows
from concordant.scoring.reward import Context, Reward, as_reward, load_reward, reward

ROOM = Path(__file__).with_name("room.py")
SRC = Path(__file__).resolve().parents[2] / "src"


def load(name: str, **options: Any) -> Reward:
    return replace(load_reward(f"{ROOM}:{name}"), **options)


def rows(*completions: str, group: Any = (), **fields: Any) -> Rows:
    columns = {name: [value] * len(completions) for name, value in fields.items()}
    return Rows({"completion": list(completions), **columns}, group)


def values(outcomes: list[Outcome]) -> list[Any]:
    return [outcome.value for outcome in outcomes]


def reasons(outcomes: list[Outcome]) -> list[str]:
    return [outcome.reason for outcome in outcomes]


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def soon(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [inner for child in map(int, found) for inner in (child, *children(child))]


# ---- processes ---------------------------------------------------------------------------------------------------


def test_what_a_killed_reward_had_started_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with Engine([load("spawns")]) as engine:
        (found,) = engine.run(rows("hang", "fine", file=str(file))).values()
        assert reasons(found) == ["timed out after 0.5 s", ""]
        started = [int(line) for line in lines(file)]
        assert len(started) == 3
        assert soon(lambda: not any(map(alive, started)))


def test_close_leaves_no_process_and_no_thread() -> None:
    before, threads = children(os.getpid()), threading.active_count()
    with Engine([load("pauses")], workers=3) as engine:
        engine.run(rows("a"))
        assert len(children(os.getpid())) == len(before) + 4, "a nursery and three workers"
    assert children(os.getpid()) == before
    assert threading.active_count() == threads
    with pytest.raises(RewardError, match="engine is closed"):
        engine.run(rows("a"))


SCRIPT = """
import sys, time
from concordant.scoring.engine import Engine
from concordant.scoring.outcome import Rows
from concordant.scoring.reward import load_reward

with Engine([load_reward({file!r}, timeout=60)]) as engine:
    pending = engine.submit(Rows({{"completion": ["x", "xyz"]}}))
    print("ready", flush=True)
    pending.result()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_parent(how: signal.Signals) -> None:
    command = [sys.executable, "-c", SCRIPT.format(file=f"{ROOM}:odd")]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        assert parent.stdout.readline() == b"ready\n"
        assert soon(lambda: len(children(parent.pid)) == 3)
        started = children(parent.pid)
        time.sleep(0.3)  # a worker hangs in the reward by now
        parent.send_signal(how)
        assert parent.wait(10) != 0
        assert soon(lambda: not any(map(alive, started)))
        assert how == signal.SIGKILL or b"KeyboardInterrupt" in parent.stderr.read()


def test_a_nursery_that_is_killed_is_replaced() -> None:
    with Engine([load("pauses")]) as engine:
        assert engine._pool is not None
        engine.run(rows("a"))
        os.kill(engine._pool.launcher.process.pid, signal.SIGKILL)
        assert values(engine.run(rows("b", "c", "d"))["pauses"]) == [1.0] * 3


def test_what_no_worker_says_is_not_believed() -> None:
    with Engine([load("forges")]) as engine:
        found = engine.run(rows("failed", "a", "inf", "b", "garbage", "c", "d", "e"))["forges"]
    for text, outcome in zip(("failed", "a", "inf", "b", "garbage", "c", "d", "e"), found, strict=True):
        if text in ("failed", "inf", "garbage"):
            assert outcome.value in (None, 1.0)
        else:
            assert outcome.value == 1.0


def test_workers_do_not_import_torch() -> None:
    with Engine([load("heavy")]) as engine:
        assert values(engine.run(rows("a", "b"))["heavy"]) == [0.0, 0.0]


def test_what_rewards_print_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for log in (None, tmp_path / "rewards.log"):
        with Engine([load("prints")], log=log) as engine:
            assert values(engine.run(rows("a", "b"))["prints"]) == [1.0, 1.0]
    assert capfd.readouterr() == ("", "")
    # two workers write to one file, so that lines may end where the other's begin
    assert (tmp_path / "rewards.log").read_text().count("and to the other stream") == 2


# ---- refusals ----------------------------------------------------------------------------------------------------


def test_a_function_that_cannot_reach_a_worker_is_refused_at_once() -> None:
    with pytest.raises(RewardError, match=r"'inner' cannot be sent to a worker.*inline=True"):
        Engine([as_reward(lambda completion: 1.0, "inner")])
    assert values(
        Engine([as_reward(lambda completion: 1.0, "inner", inline=True)]).run(rows("a"))["inner"]
    ) == [1]


def test_a_callable_object_of_a_file_reaches_the_workers() -> None:
    with Engine([load("above_one")]) as engine:
        assert values(engine.run(rows("a", "bb"))["above_one"]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("raise OSError('no model here')", r"'f' cannot be loaded in a worker.*no model here"),
        ("os._exit(7)", r"ended while it loaded the rewards: worker exited with code 7"),
    ],
)
def test_a_file_that_fails_in_the_worker_is_an_error_and_no_endless_loop(
    line: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    here = f"import os\nif os.getpid() != {os.getpid()}:\n    "
    file.write_text(f"{here}{line}\ndef f(completion):\n    return 1.0\n")
    engine = Engine([load_reward(f"{file}:f")])
    with engine, pytest.raises(RewardError, match=message):
        engine.run(rows("a"))


def test_two_rewards_of_one_name_are_refused() -> None:
    with pytest.raises(RewardError, match="same name"):
        Engine([load("pauses"), load("pauses")])


@pytest.mark.parametrize("guarded", [True, False])
def test_a_reward_in_the_script_itself(guarded: bool, tmp_path: Path) -> None:
    body = (
        "with Engine([as_reward(f)]) as e:\n    print(e.run(Rows({'completion': ['abc']}))['f'][0].value)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from concordant.scoring.engine import Engine\nfrom concordant.scoring.outcome import Rows\n"
        "from concordant.scoring.reward import as_reward\ndef f(completion):\n    return float(len(completion))\n"
        + ("if __name__ == '__main__':\n    " + body.replace("\n    ", "\n        ") if guarded else body)
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=60
    )
    if guarded:
        assert ended.stdout == "3.0\n", ended.stderr
    else:
        assert "put what starts the run under `if __name__ == '__main__':`" in ended.stderr


# ---- what is called, and when ------------------------------------------------------------------------------------

MIXED = [f"{'hang' if i == 7 else 'x' * (i % 5)}" for i in range(40)]


def test_outcomes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    given = rows(*MIXED, file=str(tmp_path / "pids"), group=[i // 4 for i in range(40)])
    listed = [load("spawns"), load("largest"), load("told"), load("rank")]
    found = []
    for workers in (1, 2, 3):
        with Engine(listed, workers, seed=3) as engine:
            made = engine.run(given, Context(step=2))
            found.append({name: [(o.value, o.reason) for o in outcomes] for name, outcomes in made.items()})
    assert found[0] == found[1] == found[2]
    assert sum(value is None for value, _ in found[0]["spawns"]) == 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_group_is_judged_as_a_whole(workers: int) -> None:
    texts = ["x" * i for i in range(1, 25)]
    group = [i % 5 for i in range(24)]  # interleaved and ragged
    with Engine([load("largest"), load("rank")], workers) as engine:
        found = engine.run(rows(*texts, group=group))
    longest = [max(len(t) for t, g in zip(texts, group, strict=True) if g == own) for own in group]
    assert values(found["largest"]) == [float(len(t) == n) for t, n in zip(texts, longest, strict=True)]
    assert values(found["rank"]) == [float(i) for i in range(24)]


def test_equal_rows_share_a_call_unless_told_not_to(tmp_path: Path) -> None:
    texts = ["a", "bb", "a", "a", "bb", "ccc"]
    for name, calls in (("counted", 3), ("uncached", 6)):
        file = tmp_path / name
        with Engine([load(name)]) as engine:
            found = engine.run(rows(*texts, file=str(file)))[name]
            assert values(found) == [1, 2, 1, 1, 2, 3]
            assert len(lines(file)) == calls
            stats = engine.stats[name]
            assert (stats.rows, stats.calls, stats.attempts, stats.repeated) == (6, calls, calls, 6 - calls)
            assert sum(o.attempts for o in found) == calls


def test_inputs_that_are_equal_but_of_another_type_are_called_apart() -> None:
    def kind(completion: str, answer: Any) -> float:
        return float(isinstance(answer, bool))

    engine = Engine([as_reward(kind, inline=True)])
    given = Rows({"completion": ["a"] * 3, "answer": [1, True, 1.0]})
    assert values(engine.run(given)["kind"]) == [0.0, 1.0, 0.0]


def test_the_context_is_the_calls_own() -> None:
    given = replace(rows("a", "a", "a"), ids=[5, 6, 5])
    with Engine([load("told")], seed=1) as engine:
        first = values(engine.run(given, Context(step=4))["told"])
        again = values(engine.run(given, Context(step=4))["told"])
        later = values(engine.run(given, Context(step=5))["told"])
    with Engine([load("told")], seed=2) as engine:
        other = values(engine.run(given, Context(step=4))["told"])
    assert first == again
    assert all(4 <= value < 5 for value in first)
    assert first[0] == first[2] != first[1]
    assert first[0] != later[0] - 1
    assert first[0] != other[0]


@pytest.mark.parametrize("inline", [False, True])
def test_transient_errors_are_tried_again(inline: bool, tmp_path: Path) -> None:
    with Engine([load("flaky", inline=inline)]) as engine:
        found = engine.run(rows("0", "1", "2", "3", file=str(tmp_path / "tries")))["flaky"]
    assert values(found) == [1.0, 2.0, 3.0, None]
    assert [o.attempts for o in found] == [1, 2, 3, 3]
    assert found[3].reason == "raised TransientError: try 3"


@pytest.mark.parametrize("inline", [False, True])
def test_a_rate_holds_over_all_workers(inline: bool, tmp_path: Path) -> None:
    file = tmp_path / "starts"
    with Engine([load("stamped", rate=50, inline=inline)], workers=3) as engine:
        engine.run(rows(*map(str, range(15)), file=str(file)))
    starts = sorted(map(float, lines(file)))
    assert len(starts) == 15
    assert starts[-1] - starts[0] >= 14 / 50 * 0.9, "calls that started sooner than the rate allows"


def test_concurrency_holds_over_all_workers(tmp_path: Path) -> None:
    file = tmp_path / "events"
    with Engine([load("alone", concurrency=1)], workers=3) as engine:
        engine.run(rows(*map(str, range(12)), file=str(file)))
    assert [line.split()[0] for line in lines(file)] == ["in", "out"] * 12


def test_submit_returns_while_workers_work(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    with Engine([load("pauses"), load("counted")]) as engine:
        engine.run(rows("warm", file=str(tmp_path / "warm")))
        first = engine.submit(rows("a", "b", "c", "d", file=str(file)))
        second = engine.submit(rows("e", file=str(file)))
        assert not first.done
        assert soon(lambda: len(lines(file)) == 5), "nobody has asked for a result yet"
        assert values(second.result()["counted"]) == [1.0]
        assert values(first.result()["pauses"]) == [1.0] * 4
        assert first.done
        assert first.stats["pauses"].calls == 4
        assert engine.stats["pauses"].calls == 6


def test_a_slow_job_does_not_keep_those_behind_it_waiting(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with Engine([load("spawns", timeout=3)]) as engine:
        engine.run(rows(*(f"warm {i}" for i in range(2000)), file=str(file)))  # chunks are large by now
        pending = engine.submit(rows("hang", *(f"quick {i}" for i in range(99)), file=str(file)))
        assert engine._pool is not None
        ticket = pending._work[0][1]
        assert soon(lambda: sum(r is not None for r in ticket.results) == 99, 2.5), "others take the rest"  # type: ignore[union-attr]
        assert sum(o.value is None for o in pending.result()["spawns"]) == 1


# ---- asynchronous rewards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("culprit", ["block", "sub"])
def test_a_blocked_loop_costs_its_culprit_alone(culprit: str) -> None:
    texts = [culprit if i == 3 else f"ok {i}" for i in range(12)]
    with Engine([load("loops")], workers=1) as engine:
        found = engine.run(rows(*texts))["loops"]
    assert [o.reason for o in found if o.value is None] == ["timed out after 0.6 s"]
    assert found[3].value is None


def test_time_in_which_others_keep_the_loop_busy_does_not_count() -> None:
    with Engine([load("loops")], workers=1) as engine:
        found = engine.run(rows("long", *(f"ok {i}" for i in range(6))))["loops"]
    assert reasons(found)[1:] == [""] * 6


def test_a_call_that_ignores_being_cancelled_is_left_behind() -> None:
    with Engine([load("loops")], workers=1) as engine:
        assert reasons(engine.run(rows("stubborn", "ok"))["loops"]) == ["timed out after 0.6 s", ""]
        assert values(engine.run(rows("ok again"))["loops"]) == [1.0]


@pytest.mark.parametrize("inline", [False, True])
def test_what_would_end_a_loop_is_a_failure_of_its_row(inline: bool) -> None:
    with Engine([load("quits", inline=inline)], workers=1) as engine:
        found = engine.run(rows("cancelled", "exit", "fine"))["quits"]
    assert reasons(found) == ["raised CancelledError", "raised SystemExit: 4", ""]


def test_async_calls_are_in_flight_together() -> None:
    started = time.monotonic()
    with Engine([load("loops", concurrency=32)]) as engine:
        assert values(engine.run(rows(*map(str, range(32))))["loops"]) == [1.0] * 32
    assert time.monotonic() - started < 32 * 0.2


def test_an_inline_async_reward_inside_a_running_loop() -> None:
    import asyncio

    async def notebook() -> list[Any]:
        return values(Engine([load("quits", inline=True)]).run(rows("a", "b"))["quits"])

    assert asyncio.run(notebook()) == [1.0, 1.0]


# ---- policies of a pass ------------------------------------------------------------------------------------------


def test_failing_on_every_row_stops_the_first_pass_only() -> None:
    @reward(inline=True)
    def breaks(completion: str) -> float:
        return 1.0 if completion == "fine" else {}["x"]

    with pytest.raises(
        RewardError, match=r"'breaks' failed on all 2 rollouts; the first: raised KeyError: 'x'"
    ):
        Engine([as_reward(breaks)]).run(rows("a", "b"))
    engine = Engine([as_reward(breaks)])
    engine.run(rows("fine", "b"))
    assert values(engine.run(rows("a", "b"))["breaks"]) == [None, None]
    assert values(Engine([as_reward(breaks)], strict=False).run(rows("a"))["breaks"]) == [None]
    assert Engine([as_reward(breaks)]).run(rows()) == {"breaks": []}


def test_outcomes_come_back_from_the_cache(tmp_path: Path) -> None:
    from concordant.scoring.cache import Cache

    file = tmp_path / "calls"
    given = rows("a", "bb", "a", file=str(file), group=[0, 0, 1])
    for again in (False, True):
        with (
            Cache(tmp_path / "cache.sqlite") as cache,
            Engine([load("counted"), load("largest")], cache=cache) as engine,
        ):
            found = engine.run(given)
            assert values(found["counted"]) == [1.0, 2.0, 1.0]
            assert values(found["largest"]) == [0.0, 1.0, 1.0]
            assert [o.cached for o in found["counted"] + found["largest"]] == [again] * 6
            assert engine.stats["counted"].cached == (3 if again else 0)
    assert sorted(lines(file)) == ["a", "bb"]


def test_trl_functions_get_what_they_name() -> None:
    with Engine([load("trl")]) as engine:
        given = Rows(
            {"prompt": ["p"] * 2, "completion": ["a", "b"], "answer": [1, 2], "missing": [{}, {}]}, [0, 0]
        )
        assert values(engine.run(given)["trl"]) == [1.0, 1.0], "of the columns, only the answer is left over"
