"""Which calls a pass over rows needs: units of work, without those that the cache answers and those that are equal."""

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from concordant.core.errors import RewardError
from concordant.scoring.arrays import hold_arrays, pickled
from concordant.scoring.call import Job, arguments, call_seed, takes_context, wants_lists
from concordant.scoring.outcome import Outcome, Rows
from concordant.scoring.pairs import Questions, questions
from concordant.scoring.reward import Context, Reward, check_fields
from concordant.scoring.values import said_nothing, shorten

LARGEST = 1000 << 20
"""Bytes that the inputs of one call may have on their way to a worker."""


class Unit(NamedTuple):
    """Rows (for rewards of pairs: questions) that one call judges, and the job that judges them."""

    rows: tuple[int, ...]
    job: int
    """Place in `Plan.jobs`; -1 where the cache had all outcomes."""
    keys: tuple[bytes, ...] = ()
    """Of each row, for the cache; empty where its outcomes are not cached."""


@dataclass(frozen=True)
class Plan:
    """The calls of one reward."""

    reward: Reward
    names: tuple[str, ...]
    """Of the arguments."""
    jobs: list[Job]
    payloads: list[bytes]
    """The jobs pickled; empty for inline rewards that cannot be compared."""
    units: list[Unit]
    known: Mapping[int, Outcome]
    """Outcomes from the cache, by row."""
    asked: Questions | None = None
    """For a reward of pairs: what it is asked; the rows above are then questions."""

    def settle(self, answers: list[Outcome]) -> list[Outcome]:
        """From one outcome for each row or question to one for each row or pair."""
        return answers if self.asked is None else self.asked.settle(answers)

    def answers(self, called: Sequence[Sequence[Outcome]]) -> list[Outcome]:
        """One outcome for each row or question; those that share a call count it once."""
        found = dict(self.known)
        seen: set[int] = set()
        for unit in self.units:
            if unit.job >= 0:
                again = unit.job in seen
                seen.add(unit.job)
                for row, outcome in zip(unit.rows, called[unit.job], strict=True):
                    found[row] = replace(outcome, attempts=0, seconds=0.0) if again else outcome
        return [found[row] for row in range(len(found))]

    def to_cache(self, called: Sequence[Sequence[Outcome]]) -> list[tuple[bytes, Outcome]]:
        """Key and outcome of what is worth keeping: values, and that a reward declined; never a failure."""
        return [
            (key, outcome)
            for unit in self.units
            if unit.job >= 0
            for key, outcome in zip(unit.keys, called[unit.job], strict=False)
            if outcome.value is not None or said_nothing(outcome.reason)
        ]


def make_plan(reward: Reward, rows: Rows, context: Context, cache: Any = None, mark: bytes = b"") -> Plan:
    """Plan the calls of a reward.

    Args:
        reward: the reward.
        rows: what is to be scored.
        context: of the pass; its seed is that of the run.
        cache: a `Cache`, or None.
        mark: fingerprint of the reward, where there is a cache.

    Raises:
        RewardError: if the reward asks for a field that is not there, or a value cannot be sent to a worker.
    """
    check_fields(reward, list(rows.fields))
    asked = questions(reward, rows, context) if reward.level == "pair" else None
    rows = rows if asked is None else asked.rows
    fields = arguments(reward, list(rows.fields))
    units = split(reward, rows)
    jobs = _jobs(reward, rows, list(fields.values()), units, context)
    keys = _keys(reward, list(fields.values()), jobs, mark) if cache is not None and reward.cache else []
    known = _known(cache, units, jobs, keys) if keys else {}
    shares = reward.cache and not takes_context(reward)
    places: dict[bytes, int] = {}
    plan = Plan(reward, tuple(fields), [], [], [], known, asked)
    pack = _packer(reward, [rows.fields[field] for field in fields.values()], len(units))
    for place, (members, job) in enumerate(zip(units, jobs, strict=True)):
        own = keys[place] if keys else ()
        if members[0] in known:
            plan.units.append(Unit(members, -1))
            continue
        payload = pack(job)
        at = places.get(payload, -1) if shares and payload else -1
        if at < 0:
            at = len(plan.jobs)
            places[payload] = at
            plan.jobs.append(job)
            plan.payloads.append(payload)
        plan.units.append(Unit(members, at, own))
    return plan


def split(reward: Reward, rows: Rows) -> list[tuple[int, ...]]:
    """Return the rows that each call judges: single rows, groups in the order in which they appear, or all.

    The rows of a reward of pairs are its questions: one by one, or (style `batch`) all of them.
    """
    if reward.level == "batch" or (reward.level == "pair" and reward.style == "batch"):
        return [tuple(range(len(rows)))] if len(rows) else []
    if reward.level != "group" or not len(rows.group):
        return [(row,) for row in range(len(rows))]
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(rows.group):
        groups.setdefault(group, []).append(row)
    return [tuple(members) for members in groups.values()]


def _jobs(
    reward: Reward, rows: Rows, fields: Sequence[str], units: Sequence[tuple[int, ...]], context: Context
) -> list[Job]:
    columns = [rows.fields[field] for field in fields]
    lengths = _lengths(reward, rows)
    contexts = _contexts(reward, rows, units, context)
    if wants_lists(reward):
        values: Iterable[tuple[Any, ...]] = (
            tuple([c[i] for i in members] for c in columns) for members in units
        )
    else:
        values = zip(*columns, strict=True) if columns else [()] * len(units)
    if not contexts and lengths is None:
        return [Job(given, len(members)) for given, members in zip(values, units, strict=True)]
    return [
        Job(
            given,
            len(members),
            lengths[members[0]] if lengths is not None else None,
            contexts[place] if contexts else None,
        )
        for place, (given, members) in enumerate(zip(values, units, strict=True))
    ]


def _lengths(reward: Reward, rows: Rows) -> Sequence[int] | None:
    if reward.level not in ("segment", "step"):
        return None
    if reward.level not in rows.lengths:
        raise RewardError(
            f"reward {reward.name!r} judges each {reward.level} of a row, but how many there are is not known; "
            f"give `lengths[{reward.level!r}]`"
        )
    return rows.lengths[reward.level]


def _contexts(
    reward: Reward, rows: Rows, units: Sequence[tuple[int, ...]], context: Context
) -> list[Context]:
    """A context for each call, its seed from that of the run, the step, and the row or group."""
    if not takes_context(reward):
        return []
    whose = rows.group if reward.level == "group" and len(rows.group) else rows.ids or range(len(rows))
    made = []
    for members in units:
        seed = call_seed(context.seed, context.step, reward.level, whose[members[0]])
        made.append(replace(context, seed=seed))
    return made


def _keys(reward: Reward, fields: Sequence[str], jobs: Sequence[Job], mark: bytes) -> list[tuple[bytes, ...]]:
    """Cache keys of the rows of each job; none for inputs that have no name."""
    from concordant.scoring.keys import key

    found: list[tuple[bytes, ...]] = []
    for job in jobs:
        whole = key(mark, dict(zip(fields, job.values, strict=True)), job.context)
        if whole is None:
            found.append(())
        elif wants_lists(reward):
            names = (b"%b%d" % (whole, member) for member in range(job.size))
            found.append(tuple(hashlib.blake2b(name, digest_size=16).digest() for name in names))
        else:
            found.append((whole,))
    return found


def _known(
    cache: Any, units: Sequence[tuple[int, ...]], jobs: Sequence[Job], keys: Sequence[tuple[bytes, ...]]
) -> dict[int, Outcome]:
    """Outcomes that the cache has; of a group only if it has all."""
    stored = cache.get_many([key for own in keys for key in own])
    known: dict[int, Outcome] = {}
    for members, job, own in zip(units, jobs, keys, strict=True):
        found = [stored[key] for key in own if key in stored]
        if len(found) == len(members) and all(_fits(o, job.length) for o in found):
            cached = (replace(o, cached=True, attempts=0, seconds=0.0) for o in found)
            known |= dict(zip(members, cached, strict=True))
    return known


def _fits(outcome: Outcome, length: int | None) -> bool:
    """Whether an outcome from the cache has a value for each part of its row."""
    value = outcome.value
    return length is None or value is None or (isinstance(value, tuple) and len(value) == length)


def _packer(reward: Reward, columns: Sequence[Sequence[Any]], units: int) -> Callable[[Job], bytes]:
    """Return what packs the jobs of a pass; a single one that stays in this process needs no packing."""
    if reward.inline and units == 1:
        return lambda job: b""
    write = pickled if hold_arrays(columns) else _pickled
    return lambda job: _pickle(reward, job, write)


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def _pickle(reward: Reward, job: Job, write: Callable[[Any], bytes]) -> bytes:
    """A job as bytes, by which equal jobs are known and in which workers get them."""
    try:
        made = write(tuple(job))
    except Exception as error:  # pickle raises what the object's own methods raise
        if reward.inline:
            return b""
        raise RewardError(
            f"a field of reward {reward.name!r} cannot be sent to a worker process: {shorten(str(error))}; keep fields "
            "to plain data, or declare it @reward(inline=True)"
        ) from None
    if len(made) > LARGEST and not reward.inline:
        raise RewardError(
            f"one call of reward {reward.name!r} would be sent {len(made) >> 20} MB, more than the {LARGEST >> 20} MB "
            "that a worker process takes; let it judge fewer rows at a time, or declare it @reward(inline=True)"
        )
    return made
