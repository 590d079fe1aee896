"""A language model as a reward, over any server that speaks the OpenAI protocol. Needs the extra `judge`."""

from concordant.rewards.judge.judges import Judge, PairJudge

__all__ = ["Judge", "PairJudge"]
