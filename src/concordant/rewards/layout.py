"""Layout rewards: tags and length."""

from dataclasses import dataclass

from concordant.rewards.text import well_formed, without_tags


def tag_format(completion: str) -> float:
    """Reward 1.0 for exactly one think block followed by exactly one answer block, else 0.0. Higher is
    better.

    >>> tag_format("<think>1+1=2</think><answer>2</answer>"), tag_format("<answer>2</answer>")
    (1.0, 0.0)
    """
    return float(well_formed(completion))


def written_length(completion: str) -> int:
    """Count the characters that are neither tags nor white space.

    >>> written_length("<think>1+1=2</think> <answer>2</answer>")
    6
    """
    return len("".join(without_tags(completion).split()))


@dataclass(frozen=True)
class Short:
    """Reward 1.0 when the completion has at most `limit` characters besides tags and spaces, else 0.0.

    Tags do not count, so that leaving them out pays nothing here. An empty completion is short: on its own
    this reward asks for silence, which is why it is usually conditioned on a correct answer.

    >>> Short(limit=5)("<think>1+1=2</think><answer>2</answer>")
    0.0
    """

    limit: int = 20

    def __call__(self, completion: str) -> float:
        """Judge one completion."""
        return float(written_length(completion) <= self.limit)
