"""Kernels: pure functions on named tensors. All mathematics of the library is here."""

from concordant.kernels.aggregate import fixed_length, rollout_mean, rollout_sum, token_mean
from concordant.kernels.batch import batch_zscore
from concordant.kernels.columns import composite_key, label_missing, present, present_group
from concordant.kernels.combine import (
    clip_values,
    complement,
    entropy_gate,
    multiply_gate,
    negate,
    nonzero_gate,
    set_consistency,
    weighted_sum,
)
from concordant.kernels.credit import (
    gae,
    increments,
    pool_segments,
    potential_shaping,
    spread,
    spread_segments,
    step_consistency,
    to_go,
)
from concordant.kernels.filters import balanced_drop_counts, process_outcome_filter
from concordant.kernels.groups import (
    group_center,
    group_loo,
    group_max,
    group_mean,
    group_minmax,
    group_rank,
    group_zscore,
)
from concordant.kernels.kl import kl_k1, kl_k2, kl_k3
from concordant.kernels.likelihood import span_likelihood
from concordant.kernels.ratio import on_policy_ratio, sequence_ratio, token_ratio, whole_sequence_ratio
from concordant.kernels.sets import accurate_set, no_positive_groups, selected_bonus, tied_groups
from concordant.kernels.suites import (
    decayed_outcome,
    density_calibrate,
    difficulty_weights,
    pass_rates,
    weighted_partial_success,
)
from concordant.kernels.terms import cispo_term, clip_term, dual_clip_term, plain_term
from concordant.kernels.votes import answer_entropy, majority_vote

__all__ = [
    "accurate_set",
    "answer_entropy",
    "balanced_drop_counts",
    "batch_zscore",
    "cispo_term",
    "clip_term",
    "clip_values",
    "complement",
    "composite_key",
    "decayed_outcome",
    "density_calibrate",
    "difficulty_weights",
    "dual_clip_term",
    "entropy_gate",
    "fixed_length",
    "gae",
    "group_center",
    "group_loo",
    "group_max",
    "group_mean",
    "group_minmax",
    "group_rank",
    "group_zscore",
    "increments",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "label_missing",
    "majority_vote",
    "multiply_gate",
    "negate",
    "no_positive_groups",
    "nonzero_gate",
    "on_policy_ratio",
    "pass_rates",
    "plain_term",
    "pool_segments",
    "potential_shaping",
    "present",
    "present_group",
    "process_outcome_filter",
    "rollout_mean",
    "rollout_sum",
    "selected_bonus",
    "sequence_ratio",
    "set_consistency",
    "span_likelihood",
    "spread",
    "spread_segments",
    "step_consistency",
    "tied_groups",
    "to_go",
    "token_mean",
    "token_ratio",
    "weighted_partial_success",
    "weighted_sum",
    "whole_sequence_ratio",
]
