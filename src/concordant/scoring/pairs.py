"""Rewards that compare: pairs of a group, who is shown on the left, and one outcome for each pair. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from concordant.core.errors import RewardError
from concordant.scoring.arrays import dump, is_array
from concordant.scoring.call import OWN_FIELDS, call_seed
from concordant.scoring.outcome import Outcome, Rows
from concordant.scoring.reward import SIDES, Context, Reward


def all_pairs(group: Sequence[int]) -> list[tuple[int, int]]:
    """All pairs of rows with equal group, the earlier row first; groups in the order in which they begin.

    >>> all_pairs([7, 9, 7, 9, 7, 5])
    [(0, 2), (0, 4), (2, 4), (1, 3)]
    """
    members: dict[int, list[int]] = {}
    for row, own in enumerate(group):
        members.setdefault(own, []).append(row)
    return [pair for rows in members.values() for pair in combinations(rows, 2)]


@dataclass(frozen=True)
class Questions:
    """What one reward is asked about the pairs of a pass, as rows of their own, and how answers become outcomes."""

    rows: Rows
    """A row for each question."""
    ids: Sequence[tuple[int, int]]
    """Ids of both rows of each pair, the earlier row first."""
    pair: Sequence[int]
    """The pair that each question is about."""
    turned: Sequence[bool]
    """Whether the later row of the pair is shown on the left."""

    def settle(self, answers: Sequence[Outcome]) -> list[Outcome]:
        """Return one outcome for each pair, its value the share that the pair's earlier row wins."""
        said: list[list[tuple[Outcome, bool]]] = [[] for _ in self.ids]
        for answer, pair, turned in zip(answers, self.pair, self.turned, strict=True):
            said[pair].append((answer, turned))
        return [_joined(own, ids) for own, ids in zip(said, self.ids, strict=True)]


def questions(reward: Reward, rows: Rows, context: Context) -> Questions:
    """Form the pairs of all groups and what the reward is asked about them.

    Args:
        reward: a reward at the level `pair`.
        rows: what is scored.
        context: of the pass; its seed is that of the run.

    Raises:
        RewardError: if rows have no groups, the reward names neither side of any field, or a field that it names
            without a side differs inside a group.
    """
    if len(rows) and not len(rows.group):
        raise RewardError(f"reward {reward.name!r} compares rows of a group, but no groups are given")
    origin = sources(reward, list(rows.fields))
    pairs = all_pairs(rows.group)
    _check_shared(reward, rows, pairs, [field for field, side in origin.values() if not side])
    own = rows.ids if len(rows.ids) else range(len(rows))
    ids = [(int(own[left]), int(own[right])) for left, right in pairs]
    asked, turned = _orders(reward, ids, context)
    shown = [pairs[pair][::-1] if turn else pairs[pair] for pair, turn in zip(asked, turned, strict=True)]
    places = {"left": 0, "right": 1, "": 0}
    fields = {
        name: [rows.fields[field][rows_shown[places[side]]] for rows_shown in shown]
        for name, (field, side) in origin.items()
    }
    named = [call_seed(*(int(own[row]) for row in rows_shown)) for rows_shown in shown]
    return Questions(Rows(fields, ids=named), ids, asked, turned)


def sources(reward: Reward, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Field and side (empty: what both share) of each parameter; with `**kwargs` both sides of every field."""
    sided = {f"{name}_{side}": (name, side) for name in names for side in SIDES}
    known = {**sided, **{name: (name, "") for name in names}}
    parameters = reward.parameters
    found = {name: known[name] for name in parameters if name in known}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        found = {n: source for n, source in sided.items() if source[0] not in OWN_FIELDS} | found
    if not any(side for _, side in found.values()):
        example = next((name for name in ("image", "completion") if name in names), "image")
        raise RewardError(
            f"reward {reward.name!r} compares two rows but names neither; give it parameters such as "
            f"{example}_left and {example}_right"
        )
    return found


def _check_shared(reward: Reward, rows: Rows, pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> None:
    """Refuse a field that is named without a side and has two values in a group."""
    for name in names:
        values = rows.fields[name]
        for left, right in pairs:
            if not _same(values[left], values[right]):
                raise RewardError(
                    f"reward {reward.name!r} names the field {name!r} without a side, but group {rows.group[left]} has "
                    f"several values of it ({_brief(values[left])} and {_brief(values[right])}); name {name}_left and "
                    f"{name}_right"
                )


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if is_array(a) and is_array(b):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if type(a) is not type(b):
        return False
    try:
        return bool(a == b)
    except ValueError:  # lists with arrays in them
        return dump(a) == dump(b)


def _brief(value: Any) -> str:
    text = "an array" if is_array(value) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _orders(reward: Reward, ids: Sequence[tuple[int, int]], context: Context) -> tuple[list[int], list[bool]]:
    """For each question its pair, and whether the later row is on the left."""
    if reward.order == "both":
        return [pair for pair in range(len(ids)) for _ in SIDES], [False, True] * len(ids)
    if reward.order == "index":
        return list(range(len(ids))), [False] * len(ids)
    turned = []
    for left, right in ids:  # by id, not by position: permuting rows changes nobody's side
        smaller_left = call_seed(context.seed, "order", *sorted((left, right))) % 2 == 0
        turned.append(smaller_left != (left < right))
    return list(range(len(ids))), turned


def _joined(said: Sequence[tuple[Outcome, bool]], ids: tuple[int, int]) -> Outcome:
    """One outcome of a pair from one answer, or from those to both orders: a failed half is no half."""
    turned = [replace(o, value=_turned(o.value)) if turn else o for o, turn in said]
    first = turned[0]
    about: dict[str, Any] = {"left": ids[0], "right": ids[1]}
    if len(turned) == 1:
        return replace(first, detail={**first.detail, **about, "shown_left": ids[said[0][1]]})
    details = [dict(o.detail) for o in turned if o.detail]
    about |= {"shown_left": "both", "shares": [o.value for o in turned]}
    shares = [o.value for o in turned if isinstance(o.value, float)]
    sure = [o.confidence for o in turned if o.confidence is not None]
    whole = len(shares) == len(turned)
    return Outcome(
        sum(shares) / len(shares) if whole else None,
        next((o.reason for o in turned if o.reason), ""),
        sum(sure) / len(sure) if whole and len(sure) == len(turned) else None,
        first.kind, {**({"said": details} if details else {}), **about}, sum(o.seconds for o in turned),
        sum(o.attempts for o in turned), all(o.cached for o in turned),
        next((o.sandbox for o in turned if o.sandbox), ""),
    )  # fmt: skip


def _turned(value: Any) -> float | None:
    return 1.0 - value if isinstance(value, float) else None


def row_ids(outcomes: Sequence[Outcome]) -> list[int]:
    """Ids of the earlier row of each pair, by which records of pairs are filed."""
    return [int(o.detail["left"]) for o in outcomes]


def lacking_rows(
    pairs: Sequence[tuple[int, int]], outcomes: Sequence[Outcome], rows: int
) -> Mapping[str, list[bool]]:
    """Which of the rows lack a verdict: `all` of their pairs (of which there is at least one), or `any` of them."""
    total, lost = [0] * rows, [0] * rows
    for pair, outcome in zip(pairs, outcomes, strict=True):
        for row in pair:
            total[row] += 1
            lost[row] += outcome.value is None
    return {
        "all": [count > 0 and count == many for count, many in zip(lost, total, strict=True)],
        "any": [count > 0 for count in lost],
    }
