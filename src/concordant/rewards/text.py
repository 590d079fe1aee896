"""Finding the reasoning and the answer in `<think>...</think><answer>...</answer>` text, well formed or
not.
"""

import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_ANY_TAG = re.compile("|".join(TAGS))
_WELL_FORMED = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>(?:(?!</?think>|</?answer>).)*</answer>\s*",
    re.S,
)


def well_formed(completion: str) -> bool:
    """Tell whether the text is exactly one think block followed by exactly one answer block and nothing
    else.
    """
    return _WELL_FORMED.fullmatch(completion) is not None


def answer_span(completion: str) -> tuple[int, int] | None:
    """Locate what stands in the last answer block.

    The block ends at the next tag of any kind, or at the end of the text when it was never closed.

    Returns:
        Character positions (start, end) of the content without the tags, or None when no `<answer>` was
        written.
    """
    start = completion.rfind("<answer>")
    if start < 0:
        return None
    start += len("<answer>")
    end = _ANY_TAG.search(completion, start)
    return start, end.start() if end else len(completion)


def answer_text(completion: str) -> str | None:
    """Return the content of the last answer block, or None when there is none.

    >>> answer_text("<think>1+1=2</think><answer> 2 </answer>"), answer_text("2")
    ('2', None)
    """
    span = answer_span(completion)
    return None if span is None else completion[span[0] : span[1]].strip()


def think_span(completion: str) -> tuple[int, int]:
    """Locate the reasoning: the first think block, or all text before the first tag when there is no such
    block.

    An unclosed block ends at the next tag or at the end of the text.
    """
    start = completion.find("<think>")
    start = 0 if start < 0 else start + len("<think>")
    end = _ANY_TAG.search(completion, start)
    return start, end.start() if end else len(completion)


def think_text(completion: str) -> str:
    """Return the reasoning (see `think_span`)."""
    start, end = think_span(completion)
    return completion[start:end]


def without_tags(completion: str) -> str:
    """Return the text with the four tags removed.

    >>> without_tags("<think>1+1=2</think><answer>2</answer>")
    '1+1=22'
    """
    return _ANY_TAG.sub("", completion)
