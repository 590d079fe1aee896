"""Objectives: the only place with a graph."""

from concordant.objectives.policy_gradient import PolicyGradient, Stream

__all__ = ["PolicyGradient", "Stream"]
