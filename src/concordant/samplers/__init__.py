"""Samplers decide which rows to ask for, given tasks and scores so far. Rows replace rows by id, never by position."""

from concordant.samplers.base import Ask, Cost, Drawn, Sampler
from concordant.samplers.hints import HintLadder, HintSchedule
from concordant.samplers.once import Once
from concordant.samplers.refill import Refill

__all__ = ["Ask", "Cost", "Drawn", "HintLadder", "HintSchedule", "Once", "Refill", "Sampler"]
