"""Every fault in every calling style and level: the run survives, no fault becomes a number, healthy rows are right."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from concordant.scoring.engine import Engine
from concordant.scoring.outcome import Rows
from concordant.scoring.reward import load_module

matrix: Any = load_module(Path(__file__).resolve().parents[2] / "benchmarks" / "fault_matrix.py")
WORKERS, TIMEOUT = 2, 1.0
COLUMNS = [(style, level) for style in matrix.STYLES for level in matrix.LEVELS]


@pytest.fixture(scope="module", params=COLUMNS, ids=lambda column: "-".join(column))
def column(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, str, str]]:
    style, level = request.param
    reward = matrix.make_reward(style, level, TIMEOUT)
    with Engine([reward], WORKERS, memory=matrix.MEMORY) as engine:
        engine.run(Rows({"prompt": ["p"], "completion": ["ok 1"]}))
        yield engine, style, level


@pytest.mark.parametrize("fault", matrix.FAULTS)
def test_a_fault_is_recorded_and_harms_nobody_else(column: tuple[Engine, str, str], fault: str) -> None:
    engine, style, level = column
    cell = matrix.run_cell(engine, fault, style, level, WORKERS, TIMEOUT)
    assert cell["faulty_numbers"] == 0, cell
    assert cell["wrong_reasons"] == 0, cell
    assert cell["healthy_wrong"] == 0, cell
    assert cell["seconds"] <= cell["allowed"], cell
