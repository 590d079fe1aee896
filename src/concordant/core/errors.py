"""Errors that teach: what was expected, what came, what to do."""

import difflib
from collections.abc import Iterable


class ConcordantError(Exception):
    """Base of every error this library raises on purpose; its message is meant for the user."""


class ChainError(ConcordantError):
    """A chain, stage or edit that cannot be built or bound."""


class ConfigError(ConcordantError):
    """An unknown key, an unusable value, a recipe or world that does not exist."""


class DataError(ConcordantError):
    """Input data (prompts, tables, files) that cannot be used."""


class RewardError(ConcordantError):
    """A reward that cannot be called, or that judged nothing at all."""


class CheckpointError(ConcordantError):
    """A run folder or checkpoint that cannot be read or written."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a hint that names the closest choice, or lists all of them when none is close."""
    known = sorted(set(choices))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there are none"
