"""Scoring: rewards and probes turn rollouts into columns, with missing values where nothing could be judged.

Names are loaded when they are first used: worker processes import parts of this package and must start quickly.
"""

import importlib
from typing import Any

_NAMES = {
    "Context": "reward",
    "DenoisingErrors": "probes",
    "Engine": "engine",
    "Failure": "scores",
    "LogProb": "probes",
    "Models": "probes",
    "Outcome": "outcome",
    "Pending": "engine",
    "Probe": "probes",
    "Rescoring": "replay",
    "Reward": "reward",
    "Rows": "outcome",
    "Scores": "scores",
    "Stats": "stats",
    "TransientError": "reward",
    "Verdict": "reward",
    "WorldScore": "probes",
    "as_reward": "reward",
    "check_fields": "reward",
    "load_reward": "reward",
    "rescore": "replay",
    "score": "scores",
    "validate": "scores",
}

__all__ = [
    "Context",
    "DenoisingErrors",
    "Engine",
    "Failure",
    "LogProb",
    "Models",
    "Outcome",
    "Pending",
    "Probe",
    "Rescoring",
    "Reward",
    "Rows",
    "Scores",
    "Stats",
    "TransientError",
    "Verdict",
    "WorldScore",
    "as_reward",
    "check_fields",
    "load_reward",
    "rescore",
    "score",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
