"""Oracle metrics of every row, and meters of the diseases that the world has by nature."""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from concordant.core.table import Table
from concordant.kernels import group_max, majority_vote
from concordant.rewards import Short, correct, tag_format, written_length
from concordant.worlds.lm_arithmetic.problems import EASY, HARD
from concordant.worlds.lm_arithmetic.traces import assess


def evaluate(table: Table, short_limit: int) -> dict[str, list[float]]:
    """Judge every row.

    Args:
        table: with the fields completion, answer, numbers and expression.
        short_limit: limit of the reward `short`.

    Returns:
        One number a row for each of: accuracy; format; short; steps_valid (every written step is
        arithmetically right, starts from the previous result and uses the question's numbers; true when no
        step is written); consistent (the answer is what the trace arrives at; false without a trace);
        complete (the trace uses every number of the question); sound (accurate, steps valid and
        consistent); answered (the answer can be read); length (characters besides tags); and, on annotated
        tables, majority (the most frequent answer of the row's group is right).
    """
    judged = defaultdict(list)
    short = Short(short_limit)
    fields = (table.fields[name] for name in ("completion", "answer", "numbers", "expression"))
    for text, answer, numbers, expression in zip(*fields, strict=True):
        facts = assess(text, expression, numbers)
        accurate = correct(text, answer, numbers)
        row = {
            "accuracy": accurate,
            "format": tag_format(text),
            "short": short(text),
            "steps_valid": facts.steps_valid,
            "consistent": facts.consistent,
            "complete": facts.verdict.complete,
            "sound": accurate == 1.0 and facts.steps_valid and facts.consistent,
            "answered": facts.answer is not None,
            "length": written_length(text),
        }
        for name, value in row.items():
            judged[name].append(float(value))
    if "answer_id" in table and table.rows:
        judged["majority"] = _majority(table, torch.tensor(judged["accuracy"]))
    return dict(judged)


def _majority(table: Table, accuracy: Tensor) -> list[float]:
    """For every row, whether the most frequent answer of its group is right (maj@k of a group of k)."""
    vote = majority_vote(table["answer_id"], table["group"])
    return group_max(accuracy * vote.agrees, table["group"]).tolist()


def meters(table: Table, short_limit: int) -> dict[str, float]:
    """Measure diseases on sampled rows.

    Args:
        table: sampled rows with the column `group` and the task fields.
        short_limit: limit of the reward `short`.

    Returns:
        accuracy, format, short, answered: means over rows. easy, hard: accuracy on the levels `EASY` and
        `HARD`.
        tied_groups: share of groups whose correctness is equal for all members; never_solved,
            always_solved: the two kinds.
        flawed_positives: share of correct rows with an invalid step. inconsistent: share of answered rows
        whose trace does not arrive at the answer; inconsistent_positives: the same among correct rows.
        spread_correct, spread_format, spread_short: mean over groups of the reward's standard deviation in
        the group (population form). A share of nothing is NaN.
    """
    judged = evaluate(table, short_limit)
    group, level = table["group"].tolist(), table.fields["level"]
    accuracy, steps, consistent = judged["accuracy"], judged["steps_valid"], judged["consistent"]
    groups = _by_group(accuracy, group)
    positive = [i for i, value in enumerate(accuracy) if value == 1.0]
    answered = [i for i, value in enumerate(judged["answered"]) if value]
    return {
        "accuracy": mean(accuracy),
        "easy": mean([value for value, name in zip(accuracy, level, strict=True) if name in EASY]),
        "hard": mean([value for value, name in zip(accuracy, level, strict=True) if name in HARD]),
        "tied_groups": mean([float(max(members) == min(members)) for members in groups]),
        "never_solved": mean([float(max(members) == 0) for members in groups]),
        "always_solved": mean([float(min(members) == 1) for members in groups]),
        "flawed_positives": mean([1.0 - steps[i] for i in positive]),
        "inconsistent": mean([1.0 - consistent[i] for i in answered]),
        "inconsistent_positives": mean([1.0 - consistent[i] for i in positive]),
        **{name: mean(judged[name]) for name in ("format", "short", "answered", "length")},
        **{
            f"spread_{name}": mean([_spread(members) for members in _by_group(judged[key], group)])
            for name, key in (("correct", "accuracy"), ("format", "format"), ("short", "short"))
        },
    }


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def _by_group(values: Sequence[float], group: Sequence[int]) -> list[list[float]]:
    members: dict[int, list[float]] = defaultdict(list)
    for value, name in zip(values, group, strict=True):
        members[name].append(value)
    return list(members.values())


def _spread(values: Sequence[float]) -> float:
    centre = mean(values)
    return math.sqrt(mean([(value - centre) ** 2 for value in values]))
