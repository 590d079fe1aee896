"""From a table of rollouts to the table with columns of scores: missing where nothing could be judged, never a number.

Columns of a reward `r`, all float32:

- levels `rollout`, `group`, `batch`: `r` [b];
- `segment`: `r` [b n], one value for each segment that column `turn` says exists, NaN elsewhere;
- `step`: `r` [b s], one value for each step in `mask`, in order, 0 outside;
- `check`: `r` [b u], padded with NaN to the longest suite;
- `pair`: `r` [p], the share that the row `left` wins against the row `right` (both [p], positions of rows, the same for
  all rewards of pairs), NaN where there is no verdict;
- `r_confidence` [b], for pairs [p], if the function is annotated to return a `Verdict` or a verdict stated its
  confidence. With the annotation every table has the column, whatever was said.

Why a value is missing stands in the field `missing`, `{reward: reason}` for each row; what verdicts said besides, in
the field `verdicts`, `{reward: {confidence, kind, detail, sandbox}}`, if a function is annotated to return one. What
was said about pairs is no row's own: it stands in `Scores.outcomes`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from concordant.core.errors import RewardError
from concordant.core.table import Table
from concordant.scoring.call import arguments
from concordant.scoring.engine import Engine, Pending
from concordant.scoring.outcome import Outcome, Rows
from concordant.scoring.pairs import all_pairs, lacking_rows, sources
from concordant.scoring.reward import SIDES, Context, Reward, as_reward
from concordant.scoring.stats import Stats

_AXES = {"segment": "b n", "step": "b s", "check": "b u", "pair": "p"}
_LENGTHS = {"segment": "turn", "step": "mask"}


@dataclass(frozen=True)
class Scores:
    """Result of a scoring pass: the table with the columns of the rewards, and why which value is missing."""

    table: Table
    missing: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """By reward: the reason for each row position (for rewards of pairs, pair position) without a value."""
    calls: int = 0
    """Scores that were asked for: a row each, and a question each of rewards of pairs; repeated ones count."""
    dropped: int = 0
    """Rows that the rewards' policies took out (`keep` is False now and was True)."""
    outcomes: Mapping[str, Sequence[Outcome]] = field(default_factory=dict)
    """By reward: one for each row, or for each pair."""
    stats: Mapping[str, Stats] = field(default_factory=dict)


class Failure(NamedTuple):
    """A gold completion that a reward did not score as it should."""

    reward: str
    row: int
    outcome: Outcome


def score(
    table: Table,
    rewards: Sequence[Any],
    *,
    engine: Engine | None = None,
    context: Context | None = None,
) -> Scores:
    """Score every row with every reward, and apply the rewards' policies on missing values to `keep`.

    Args:
        table: rollouts; rewards are given its fields, and `completion_ids`, the tokens in `mask`.
        rewards: rewards or functions.
        engine: where they run; it must have been made for these rewards. None runs them here, one after the other,
            without time limits or isolation.
        context: what rewards with a parameter `context` are told.

    Raises:
        RewardError: if a reward needs a field or column that is not there, failed on every row of the engine's first
            pass, or lacks a value under the policy `fail`.
    """
    return begin(table, rewards, engine=engine, context=context)()


def begin(
    table: Table,
    rewards: Sequence[Any],
    *,
    engine: Engine | None = None,
    context: Context | None = None,
) -> Callable[[], Scores]:
    """Begin what `score` does; return a function that waits for its result."""
    listed = [as_reward(one) for one in rewards]
    if engine is None:
        engine = Engine([replace(reward, inline=True) for reward in listed])
    elif [reward.name for reward in listed] != [reward.name for reward in engine.rewards]:
        raise RewardError(
            f"the engine was made for {', '.join(r.name for r in engine.rewards)}, not for "
            f"{', '.join(r.name for r in listed)}"
        )
    pending = engine.submit(rows_of(table, listed), context or Context())
    return lambda: _finish(table, listed, pending)


def rows_of(table: Table, rewards: Sequence[Reward]) -> Rows:
    """Return what rewards see of a table."""
    fields: dict[str, Sequence[Any]] = dict(table.fields)
    tokens_there = "completion_ids" not in fields and "tokens" in table
    if tokens_there and any(_wants(reward, "completion_ids", list(fields)) for reward in rewards):
        tokens = zip(table["tokens"], table["mask"], strict=True)
        fields["completion_ids"] = [row[kept].tolist() for row, kept in tokens]
    lengths: dict[str, list[int]] = {}
    for reward in rewards:
        if reward.level in _LENGTHS:
            lengths[reward.level] = table[_LENGTHS[reward.level]].sum(1).tolist()
    return Rows(
        fields,
        table["group"].tolist() if "group" in table else (),
        table["id"].tolist() if "id" in table else (),
        lengths,
    )


def _wants(reward: Reward, name: str, fields: Sequence[str]) -> bool:
    """Whether a reward would be given a further field of this name."""
    if reward.level == "pair":
        return any(source == name for source, _ in sources(reward, [*fields, name]).values())
    return name in arguments(reward, [*fields, name])


def columns_of(reward: Reward) -> dict[str, str]:
    """Columns that a reward is known to make before it was called, with their axes."""
    axes = _AXES.get(reward.level, "b")
    own = axes if reward.level == "pair" else "b"
    confidence = {f"{reward.name}_confidence": own} if _gives_verdicts(reward) else {}
    ends = dict.fromkeys(SIDES, "p") if reward.level == "pair" else {}
    return {reward.name: axes, **confidence, **ends}


def _gives_verdicts(reward: Reward) -> bool:
    called = reward.function if inspect.isroutine(reward.function) else type(reward.function).__call__
    return "Verdict" in str(getattr(called, "__annotations__", {}).get("return", ""))


def _finish(table: Table, rewards: Sequence[Reward], pending: Pending) -> Scores:
    outcomes = pending.result()
    columns = _ends(table, rewards)
    for reward in rewards:
        found = outcomes[reward.name]
        columns[reward.name] = (_AXES.get(reward.level, "b"), _column(reward, found, table))
        stated = [math.nan if o.confidence is None else o.confidence for o in found]
        if _gives_verdicts(reward) or not all(map(math.isnan, stated)):
            axes = "p" if reward.level == "pair" else "b"
            columns[f"{reward.name}_confidence"] = (axes, torch.tensor(stated, dtype=torch.float32))
    missing = {
        name: {row: o.reason for row, o in enumerate(found) if o.value is None}
        for name, found in outcomes.items()
    }
    before = table["keep"] if "keep" in table else torch.ones(table.rows, dtype=torch.bool)
    keep = _keep(table, rewards, outcomes, before)
    if any(reward.missing != "exclude" for reward in rewards):
        columns["keep"] = ("b", keep)
    return Scores(
        table.with_columns(columns, _records(table.rows, rewards, outcomes, missing)),
        missing,
        sum(stats.rows for stats in pending.stats.values()),
        int((before & ~keep).sum()),
        outcomes,
        pending.stats,
    )


def _ends(table: Table, rewards: Sequence[Reward]) -> dict[str, tuple[str, Tensor]]:
    """The columns `left` and `right`, if there is a reward of pairs."""
    names = [reward.name for reward in rewards if reward.level == "pair"]
    if not names:
        return {}
    pairs = torch.tensor(all_pairs(table["group"].tolist()), dtype=torch.int64).reshape(-1, 2)
    ends = {side: ("p", pairs[:, place].contiguous()) for place, side in enumerate(SIDES)}
    for side, (_, own) in ends.items():
        if side in table and not torch.equal(table[side], own):
            raise RewardError(
                f"reward {names[0]!r} compares all pairs of each group, but the table has other pairs already in its "
                "columns left and right; score before they are made, or take them out"
            )
    return ends


def _records(
    rows: int,
    rewards: Sequence[Reward],
    outcomes: Mapping[str, Sequence[Outcome]],
    missing: Mapping[str, Mapping[int, str]],
) -> dict[str, list[Any]]:
    """Fields that stay with each rollout."""
    own = {reward.name: missing[reward.name] for reward in rewards if reward.level != "pair"}
    records: dict[str, list[Any]] = {
        "missing": [{name: why[row] for name, why in own.items() if row in why} for row in range(rows)]
    }
    judges = [reward.name for reward in rewards if reward.name in own and _gives_verdicts(reward)]
    if judges:
        records["verdicts"] = [
            {name: _verdict(outcomes[name][row]) for name in judges} for row in range(rows)
        ]
    return records


def _verdict(outcome: Outcome) -> dict[str, Any]:
    said = {"confidence": outcome.confidence, "kind": outcome.kind, "detail": dict(outcome.detail)}
    return {**said, "sandbox": outcome.sandbox} if outcome.sandbox else said


def _column(reward: Reward, outcomes: Sequence[Outcome], table: Table) -> Tensor:
    """The values of a reward, NaN where missing."""
    level = reward.level
    if level == "pair" or level not in _AXES:
        values = [math.nan if o.value is None else o.value for o in outcomes]
        return torch.tensor(values, dtype=torch.float32)
    if level == "check":
        width = max((len(o.value) for o in outcomes if isinstance(o.value, tuple)), default=1)
        column = torch.full((len(outcomes), width), math.nan)
        sizes = [len(o.value) if isinstance(o.value, tuple) else 0 for o in outcomes]
        where = torch.arange(width) < torch.tensor(sizes)[:, None]
    else:
        where = table[_LENGTHS[level]].bool()
        column = torch.full(where.shape, 0.0 if level == "step" else math.nan)
    for row, o in enumerate(outcomes):
        if isinstance(o.value, tuple):
            column[row, where[row]] = torch.tensor(o.value, dtype=torch.float32)
        elif level == "step":
            column[row, where[row]] = math.nan
    return column


def _keep(
    table: Table, rewards: Sequence[Reward], outcomes: Mapping[str, Sequence[Outcome]], before: Tensor
) -> Tensor:
    """Apply the policies on missing values; rows that were out before take nothing else out."""
    keep = before.clone()
    for reward in rewards:
        found = outcomes[reward.name]
        lacking = _lacking(table, reward, found) & before
        if reward.missing == "exclude" or not lacking.any():
            continue
        if reward.missing == "fail":
            lost = [o.reason for o in found if o.value is None]
            many, what = len(lost), "pairs"
            if reward.level != "pair":
                many, what, lost = int(lacking.sum()), "rollouts", [found[int(lacking.nonzero()[0])].reason]
            raise RewardError(
                f"reward {reward.name!r} has no value for {many} of {len(found)} {what}, and its policy is to stop "
                f"then; the first: {lost[0]}"
            )
        if reward.missing == "drop-group" and "group" in table:
            lacking = torch.isin(table["group"], table["group"][lacking])
        keep &= ~lacking
    return keep


def _lacking(table: Table, reward: Reward, outcomes: Sequence[Outcome]) -> Tensor:
    """Rows without a value, shape (b). Of pairs: under `drop-rollout` rows that no verdict is about, else rows that any
    verdict on them is lacking.
    """
    if reward.level != "pair":
        return torch.tensor([o.value is None for o in outcomes], dtype=torch.bool)
    found = lacking_rows(all_pairs(table["group"].tolist()), outcomes, table.rows)
    return torch.tensor(found["all" if reward.missing == "drop-rollout" else "any"], dtype=torch.bool)


def validate(
    rewards: Sequence[Any],
    rows: Rows,
    gold: Sequence[str],
    *,
    expected: float = 1.0,
    engine: Engine | None = None,
) -> list[Failure]:
    """Score gold completions, without any model: whatever is not `expected` is a fault of the reward or of the data.

    Args:
        rewards: rewards or functions; at the levels of parts, every part must be as expected.
        rows: prompts with their fields; a field `completion` is replaced.
        gold: the right completion of each row.
        expected: what each must score.
        engine: where the rewards run; None runs them here.

    >>> def exact(completion, answer):
    ...     return float(completion == answer)
    >>> [(f.reward, f.row) for f in validate([exact], Rows({"answer": ["4", "5"]}), ["4", "5.0"])]
    [('exact', 1)]
    """
    listed = [as_reward(one) for one in rewards]
    for one in listed:
        if one.level == "pair":
            raise RewardError(
                f"reward {one.name!r} compares rollouts; a gold completion alone has nothing to validate"
            )
    own = engine or Engine([replace(reward, inline=True) for reward in listed], strict=False)
    given = replace(rows, fields={**rows.fields, "completion": list(gold)})
    return [
        Failure(name, row, outcome)
        for name, outcomes in own.run(given).items()
        for row, outcome in enumerate(outcomes)
        if not _is(outcome.value, expected)
    ]


def _is(value: float | tuple[float, ...] | None, expected: float) -> bool:
    return all(part == expected for part in value) if isinstance(value, tuple) else value == expected
