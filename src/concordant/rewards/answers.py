"""Answer rewards: does the answer block hold what the task asks for?"""

from collections.abc import Sequence

from concordant.rewards.numbers import read_expression, read_integer
from concordant.rewards.text import answer_text


def normalise_answer(text: str | None) -> str | None:
    """Return one spelling per answer: integers without sign tricks and leading zeros, expressions without
    spaces.

    Returns:
        The spelling, or None for a missing answer and for text that is neither an integer nor a small
        expression.

    >>> normalise_answer("+016"), normalise_answer("8 - 3"), normalise_answer("many")
    ('16', '8-3', None)
    """
    if text is None:
        return None
    integer = read_integer(text)
    if integer is not None:
        return str(integer)
    return None if read_expression(text) is None else "".join(text.split())


def correct(completion: str, answer: str, numbers: Sequence[int] | None = None) -> float:
    """Reward 1.0 for a right answer in the last answer block, else 0.0 (no block counts as wrong).

    Args:
        completion: what the policy wrote.
        answer: the key, an integer as text.
        numbers: None when the answer must be the integer itself. Otherwise the answer must be an expression
            that uses exactly these numbers, once each, and whose value is the key (the countdown game).

    Higher is better. Layout is not judged here: an unclosed answer block still counts, `tag_format`
    punishes it.

    >>> correct("<answer>16</answer>", "16"), correct("<answer>12+4</answer>", "16")
    (1.0, 0.0)
    >>> correct("<answer>8-3+2</answer>", "7", numbers=(2, 3, 8))
    1.0
    """
    text = answer_text(completion)
    if text is None:
        return 0.0
    if numbers is None:
        value = read_integer(text)
        return float(value is not None and value == int(answer))
    read = read_expression(text)
    return float(read is not None and read[0] == int(answer) and sorted(read[1]) == sorted(numbers))
