"""Attempts to break out of the sandbox: none succeeds, and nothing stays behind."""

import time
from collections.abc import Iterator

import pytest

from concordant.scoring.sandbox import Program, Sandbox, available
from tests.scoring.escapes import (
    ESCAPES,
    LIMITS,
    Bait,
    Escape,
    baited,
    namespace_of,
    residents,
    run_escape,
    servers,
)

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def bait() -> Iterator[Bait]:
    with baited() as found:
        yield found


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    assert available() == ""
    with Sandbox(slots=1, limits=LIMITS) as box:
        box.run(Program("print(1)"))
        yield box


def test_there_are_enough_attempts():
    assert len(ESCAPES) >= 25
    assert len({case.name for case in ESCAPES}) == len(ESCAPES)


@pytest.mark.parametrize("case", ESCAPES, ids=lambda case: case.name)
def test_escape_fails_and_leaves_nothing(sandbox: Sandbox, bait: Bait, case: Escape):
    before = servers(sandbox)
    assert len(before) == 2
    assert run_escape(sandbox, case, bait.places) == ""
    assert servers(sandbox) == before, "the server did not survive"
    assert residents(namespace_of(before[1])) <= set(before), "processes stayed behind"
    assert bait.touched() == ""
    healthy = sandbox.run(Program("print(sum(map(int, input().split())))", "20 22"))
    assert (healthy.stdout, healthy.status) == ("42\n", "finished")


def test_closing_leaves_no_process():
    with Sandbox(slots=1, limits=LIMITS) as box:
        box.run(Program("import os\nif os.fork() == 0:\n while True: pass"))
        started = servers(box)
        namespace = namespace_of(started[1])
        assert started[1] in residents(namespace) <= set(started)
    until = time.monotonic() + 5
    while residents(namespace) and time.monotonic() < until:
        time.sleep(0.02)
    assert residents(namespace) == set()
