"""Reward design and credit assignment for RL post-training.

Names are loaded when they are first used, so that importing the package (and `concordant --help`) stays quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "chain": "concordant.core.chain",
    "stage": "concordant.core.chain",
    "keep": "concordant.core.chain",
    "part": "concordant.core.chain",
    "Table": "concordant.core.table",
    "ConcordantError": "concordant.core.errors",
    "build": "concordant.experiment",
    "train": "concordant.loops.train",
    "compare": "concordant.comparison.compare",
    "Verdict": "concordant.scoring.reward",
    "reward": "concordant.scoring.reward",
    "score": "concordant.scoring.scores",
}
_MODULES = ("kernels", "objectives", "policies", "recipes", "rewards", "samplers", "scoring", "worlds")

__all__ = [
    "ConcordantError",
    "Table",
    "Verdict",
    "__version__",
    "build",
    "chain",
    "compare",
    "keep",
    "kernels",
    "objectives",
    "part",
    "policies",
    "recipes",
    "reward",
    "rewards",
    "samplers",
    "score",
    "scoring",
    "stage",
    "train",
    "worlds",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
