"""How programs nobody vouches for are locked in: one explicit choice for the whole process."""

from typing import Literal

from concordant.core.errors import ConcordantError

Level = Literal["bubblewrap", "none"]
LEVELS: tuple[Level, ...] = ("bubblewrap", "none")


class SandboxError(ConcordantError):
    """There is no sandbox, or it does not work; nothing was executed."""


_level: Level = "bubblewrap"


def set_isolation(level: Level) -> None:
    """Choose the level of shared sandboxes in this process. `none` is for a user who said --unsafe-no-sandbox.

    Nothing else changes it: no environment variable, no missing package. An engine passes it on to its workers, and
    it is part of the names under which scores are cached.
    """
    global _level
    if level not in LEVELS:
        raise SandboxError(f"unknown sandbox level {level!r}; known: {', '.join(LEVELS)}")
    _level = level


def isolation() -> Level:
    """Level that shared sandboxes of this process have."""
    return _level
