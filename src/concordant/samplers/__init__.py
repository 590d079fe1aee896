"""Samplers decide which rows to ask for, given tasks and scores so far. Rows replace rows by id, never by position."""

from concordant.samplers.base import Ask, Cost, Drawn, Sampler
from concordant.samplers.branches import Branches
from concordant.samplers.completions import Completions
from concordant.samplers.denoise import Balance, Denoise
from concordant.samplers.hints import HintLadder, HintSchedule
from concordant.samplers.once import Once
from concordant.samplers.refill import Refill

__all__ = [
    "Ask", "Balance", "Branches", "Completions", "Cost", "Denoise", "Drawn", "HintLadder", "HintSchedule", "Once",
    "Refill", "Sampler",
]  # fmt: skip
