"""Oracle metrics of every row, and meters of the diseases that the world has by nature."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from concordant.core.table import Table
from concordant.kernels import group_mean, tied_groups
from concordant.worlds.lm_programs.judging import Judge


def evaluate(table: Table, judge: Judge) -> dict[str, list[float]]:
    """Judge every row.

    Args:
        table: annotated, with the column `group` and the fields completion and common.
        judge: of the world's language.

    Returns:
        One number a row for each of: accuracy (passes the whole suite: pass@1); pass_rate; valid (is a program);
        tied (all members of the row's group have equal accuracy). And `rare`, the pass rate on the tests off the
        program's common path, for rows whose suite has such a test; without any such row it is left out. Rows
        without a verdict count as failed here.
    """
    tests, common = table["tests"].nan_to_num(0.0), _common(table)
    has = ~table["tests"].isnan()
    solved = ((tests == 1) | ~has).all(1) & has.any(1)
    rare = _share(tests, has & ~common)
    metrics = {
        "accuracy": solved.float().tolist(),
        "pass_rate": _share(tests, has).nan_to_num(0.0).tolist(),
        "valid": [float(judge.is_program(text)) for text in table.fields["completion"]],
        "tied": tied_groups(solved.float(), table["group"]).float().tolist(),
        "rare": rare[~rare.isnan()].tolist(),
    }
    return {name: values for name, values in metrics.items() if values}


def meters(table: Table, judge: Judge) -> dict[str, float]:
    """Measure diseases on sampled rows.

    Args:
        table: as for `evaluate`.
        judge: of the world's language.

    Returns:
        accuracy, pass_rate, valid, rare: means over rows.
        tied_groups: share of groups that all solve or all fail; never_solved, always_solved: the two kinds.
        common_tests: share of the tests that lie on the program's common path.
        easy_share: share of all passed tests that lie there, which is what a plain pass rate pays for.
        skew: how much higher the pass rate is on the common path than off it, over groups that have both kinds.
        A share of nothing is NaN.
    """
    judged = evaluate(table, judge)
    group, tests = table["group"], table["tests"]
    solved = torch.tensor(judged["accuracy"])
    rate = group_mean(solved, group)
    once = _once(group)
    common, has = _common(table), ~tests.isnan()
    gap = _share(group_mean(tests, group), has & common) - _share(group_mean(tests, group), has & ~common)
    earned = (tests == 1) & has
    return {
        **{
            name: _mean(torch.tensor(judged.get(name, [])))
            for name in ("accuracy", "pass_rate", "valid", "rare")
        },
        "tied_groups": _mean(tied_groups(solved, group).float()[once]),
        "never_solved": _mean((rate == 0).float()[once]),
        "always_solved": _mean((rate == 1).float()[once]),
        "common_tests": _ratio(common & has, has),
        "easy_share": _ratio(earned & common, earned),
        "skew": _mean(gap[once & ~gap.isnan()]),
    }


def _common(table: Table) -> Tensor:
    """Which tests lie on the common path of the row's hidden program, bool (b u); False outside the suite."""
    width = table["tests"].shape[1]
    rows = [[*flags, *[False] * (width - len(flags))] for flags in table.fields["common"]]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(rows), width)


def _share(tests: Tensor, among: Tensor) -> Tensor:
    """Mean over the chosen tests of each row, NaN where there is none."""
    return torch.where(among, tests, 0.0).sum(1) / among.sum(1)


def _once(group: Tensor) -> Tensor:
    """Mark the first row of each group."""
    first = {name: row for row, name in reversed(list(enumerate(group.tolist())))}
    mask = torch.zeros(len(group), dtype=torch.bool)
    mask[list(first.values())] = True
    return mask


def _mean(values: Tensor | Sequence[float]) -> float:
    values = torch.as_tensor(values, dtype=torch.float64)
    return float(values.mean()) if values.numel() else math.nan


def _ratio(part: Tensor, whole: Tensor) -> float:
    count = int(whole.sum())
    return int(part.sum()) / count if count else math.nan
