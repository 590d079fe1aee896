"""The world `lm/arithmetic`: sums and countdown games with worked traces, and a base policy pre-trained on
an imperfect teacher.
"""

from concordant.worlds.lm_arithmetic.problems import EASY, HARD, LEVELS, MIX
from concordant.worlds.lm_arithmetic.scorer import StepScorer
from concordant.worlds.lm_arithmetic.world import ArithmeticConfig, ArithmeticWorld

Config = ArithmeticConfig
World = ArithmeticWorld

__all__ = [
    "EASY",
    "HARD",
    "LEVELS",
    "MIX",
    "ArithmeticConfig",
    "ArithmeticWorld",
    "Config",
    "StepScorer",
    "World",
]
