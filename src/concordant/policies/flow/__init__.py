"""Generators by denoising: rectified flows and DDIM, sampled and scored again by one Gaussian step."""

from concordant.policies.flow.conditions import numbered, pick
from concordant.policies.flow.policy import FlowPolicy
from concordant.policies.flow.rows import Path, Rows
from concordant.policies.flow.schedules import DDIMSchedule, FlowPlan, FlowSchedule, Steps, flow_sigmas

__all__ = [
    "DDIMSchedule",
    "FlowPlan",
    "FlowPolicy",
    "FlowSchedule",
    "Path",
    "Rows",
    "Steps",
    "flow_sigmas",
    "numbered",
    "pick",
]
