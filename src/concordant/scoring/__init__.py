"""Scoring: rewards and probes turn rollouts into columns, with missing values where nothing could be judged."""

from concordant.scoring.probes import LogProb, Models, Probe, WorldScore
from concordant.scoring.rewards import Reward, Scores, as_reward, score

__all__ = ["LogProb", "Models", "Probe", "Reward", "Scores", "WorldScore", "as_reward", "score"]
