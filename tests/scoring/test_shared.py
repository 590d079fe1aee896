"""The memory that workers share with their parent: what is read was written, whenever one looks."""

import math
import os
import struct
import time
from collections.abc import Iterator

import pytest

from concordant.scoring.workers.shared import IDLE, Mark, Shared


@pytest.fixture
def shared() -> Iterator[Shared]:
    memory = Shared.make(2, 3)
    yield memory
    memory.close()


def test_a_reader_never_sees_half_of_a_mark(shared: Shared) -> None:
    """Without the count, several in a hundred reads mix the job of one mark with the start of another."""
    child = os.fork()
    if not child:
        end = time.monotonic() + 1.0
        while (now := time.monotonic()) < end:
            shared.mark(1, 7, now, math.inf)
            shared.mark(1, IDLE, 0.0, now)
        os._exit(0)
    reads = torn = 0
    while not os.waitpid(child, os.WNOHANG)[0]:
        for _ in range(1000):
            mark = shared.read(1)
            reads += 1
            torn += (mark.job == 7) != (mark.start > 0) or (mark.job == 7) != math.isinf(mark.quiet)
    assert reads > 10_000
    assert torn == 0


def test_a_worker_that_died_while_it_wrote_did_what_it_did_before(shared: Shared) -> None:
    shared.mark(0, 5, 1.5, math.inf)
    before = shared.read(0)
    assert before == Mark(5, 1.5, math.inf)
    count = shared._place(0) + 4
    shared.words[count] += 1
    struct.pack_into("<q", shared.memory, 8 * shared._place(0), 6)
    assert shared.read(0) == before
    shared.mark(0, IDLE, 0.0, 2.5)  # the next worker in this place
    assert shared.read(0) == Mark(IDLE, 0.0, 2.5)
    assert shared.words[count] % 2 == 0


def test_neighbours_and_revocations_are_apart(shared: Shared) -> None:
    shared.mark(0, 1, 2.0, 3.0)
    shared.mark(1, 4, 5.0, 6.0)
    shared.revoke(0, 99)
    assert shared.take_start(2, 10.0) == 0.0
    assert 0.05 < shared.take_start(2, 10.0) <= 0.1
    assert (shared.read(0), shared.read(1)) == (Mark(1, 2.0, 3.0), Mark(4, 5.0, 6.0))
    assert (shared.revoked(0), shared.revoked(1)) == (99, 0)
