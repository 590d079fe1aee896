"""Objectives: the only place with a graph."""

from concordant.objectives.pairs import DenoisingPreference, RewardDifference
from concordant.objectives.policy_gradient import PolicyGradient, Stream

__all__ = ["DenoisingPreference", "PolicyGradient", "RewardDifference", "Stream"]
