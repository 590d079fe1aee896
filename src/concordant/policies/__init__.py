"""Policies: how to sample rows and how to score them again, on the real classes of the libraries people use."""

from concordant.policies.lm import LMPolicy, SamplePlan
from concordant.policies.load import LoraOptions

__all__ = ["LMPolicy", "LoraOptions", "SamplePlan"]
