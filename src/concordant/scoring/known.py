"""Ask the cache for whole columns before any worker is: a file that was scored before needs no worker at all."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from concordant.scoring.cache import Cache
from concordant.scoring.call import arguments, takes_context, wants_lists
from concordant.scoring.keys import fingerprint, row_keys
from concordant.scoring.outcome import Outcome, Rows
from concordant.scoring.reward import Context, Reward

Made = dict[str, list[Outcome]]


class Known:
    """The rows of which the cache knows everything; the others go to an engine, which is made when it is first needed.

    Rewards that judge groups, or ask for `context`, need all rows in the engine, which has its own way to the cache.

    Args:
        rewards: what rows are scored with.
        cache: earlier results; None: every row goes to the engine.
        engine: makes the engine.
    """

    def __init__(self, rewards: Sequence[Reward], cache: Cache | None, engine: Callable[[], Any]) -> None:
        self.rewards, self.cache = rewards, cache
        self._make = engine
        self._engine: Any = None
        alone = all(r.cache and not wants_lists(r) and not takes_context(r) for r in rewards)
        self._marks = {r.name: fingerprint(r) for r in rewards} if alone and cache is not None else {}

    def submit(self, rows: Rows, context: Context) -> Callable[[], Made]:
        """Begin to score rows; call what this returns for the outcomes: by reward, one for each row."""
        known = self._look_up(rows)
        if known and all(len(found) == len(rows) for found in known.values()):
            return lambda: {name: list(found.values()) for name, found in known.items()}
        lacking = [row for row in range(len(rows)) if any(row not in found for found in known.values())]
        if self._engine is None:
            self._engine = self._make()
        if not known or len(lacking) == len(rows):
            everything: Callable[[], Made] = self._engine.submit(rows, context).result
            return everything
        pending = self._engine.submit(_take(rows, lacking), context)

        def result() -> Made:
            called = pending.result()
            for name, found in known.items():
                found.update(zip(lacking, called[name], strict=True))
            return {name: [found[row] for row in range(len(rows))] for name, found in known.items()}

        return result

    def _look_up(self, rows: Rows) -> dict[str, dict[int, Outcome]]:
        """Outcomes in the cache, by reward and row; empty if not all rewards can be looked up."""
        if self.cache is None or not self._marks:
            return {}
        known = {}
        for reward in self.rewards:
            fields = arguments(reward, list(rows.fields)).values()
            keys = row_keys(self._marks[reward.name], {name: rows.fields[name] for name in fields})
            if not keys:
                return {}
            stored = self.cache.get_many([key for key in keys if key is not None])
            lengths = rows.lengths.get(reward.level)
            known[reward.name] = {
                row: stored[key]
                for row, key in enumerate(keys)
                if key in stored and (lengths is None or _fits(stored[key], lengths[row]))
            }
        return known

    def close(self) -> None:
        """Close the engine, if one was needed."""
        if self._engine is not None:
            self._engine.close()


def _fits(outcome: Outcome, length: int) -> bool:
    return isinstance(outcome.value, tuple) and len(outcome.value) == length


def _take(rows: Rows, places: Sequence[int]) -> Rows:
    def some(values: Sequence[Any]) -> list[Any]:
        return [values[place] for place in places]

    fields: Mapping[str, Sequence[Any]] = {name: some(values) for name, values in rows.fields.items()}
    lengths = {level: some(values) for level, values in rows.lengths.items()}
    return Rows(
        fields, some(rows.group) if len(rows.group) else (), some(rows.ids) if len(rows.ids) else (), lengths
    )
