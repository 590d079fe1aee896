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
    values_after,
)
from concordant.kernels.denoising import ddim_gaussian_step, one_step_noise, one_step_x0
from concordant.kernels.filters import balanced_drop_counts, process_outcome_filter
from concordant.kernels.flow import (
    ddim_coefficients,
    flow_coefficients,
    flow_sde_step,
    gaussian_logp,
    gaussian_step,
)
from concordant.kernels.groups import (
    group_center,
    group_loo,
    group_max,
    group_mean,
    group_minmax,
    group_rank,
    group_zscore,
)
from concordant.kernels.kl import gaussian_kl, kl_k1, kl_k2, kl_k3
from concordant.kernels.likelihood import span_likelihood
from concordant.kernels.noise_levels import (
    calibrate_noise,
    gain_balance,
    inverse_step_lengths,
    noise_aware_weights,
)
from concordant.kernels.pair_losses import diffusion_dpo_margin, dpo_loss, reward_difference_loss
from concordant.kernels.pairs import (
    best_worst_pairs,
    compare_values,
    illusory_advantage,
    pair_gaps,
    random_pairs,
    same_group_pairs,
    win_rate,
)
from concordant.kernels.ratio import (
    guarded_ratio,
    on_policy_ratio,
    sequence_ratio,
    token_ratio,
    whole_sequence_ratio,
)
from concordant.kernels.rolling import RollingZscore
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
    "RollingZscore",
    "accurate_set",
    "answer_entropy",
    "balanced_drop_counts",
    "batch_zscore",
    "best_worst_pairs",
    "calibrate_noise",
    "cispo_term",
    "clip_term",
    "clip_values",
    "compare_values",
    "complement",
    "composite_key",
    "ddim_coefficients",
    "ddim_gaussian_step",
    "decayed_outcome",
    "density_calibrate",
    "difficulty_weights",
    "diffusion_dpo_margin",
    "dpo_loss",
    "dual_clip_term",
    "entropy_gate",
    "fixed_length",
    "flow_coefficients",
    "flow_sde_step",
    "gae",
    "gain_balance",
    "gaussian_kl",
    "gaussian_logp",
    "gaussian_step",
    "group_center",
    "group_loo",
    "group_max",
    "group_mean",
    "group_minmax",
    "group_rank",
    "group_zscore",
    "guarded_ratio",
    "illusory_advantage",
    "increments",
    "inverse_step_lengths",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "label_missing",
    "majority_vote",
    "multiply_gate",
    "negate",
    "no_positive_groups",
    "noise_aware_weights",
    "nonzero_gate",
    "on_policy_ratio",
    "one_step_noise",
    "one_step_x0",
    "pair_gaps",
    "pass_rates",
    "plain_term",
    "pool_segments",
    "potential_shaping",
    "present",
    "present_group",
    "process_outcome_filter",
    "random_pairs",
    "reward_difference_loss",
    "rollout_mean",
    "rollout_sum",
    "same_group_pairs",
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
    "values_after",
    "weighted_partial_success",
    "weighted_sum",
    "whole_sequence_ratio",
    "win_rate",
]
