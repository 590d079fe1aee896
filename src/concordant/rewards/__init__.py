"""Reward functions: plain, documented, called with a rollout's fields by name; higher is better.

A reward returns a number, or None when it cannot judge. Parametrised rewards are small frozen dataclasses,
because worker processes need to pickle them.
"""

from concordant.rewards.answers import correct, normalise_answer
from concordant.rewards.layout import Short, tag_format, written_length
from concordant.rewards.numbers import read_expression, read_integer
from concordant.rewards.text import (
    answer_span,
    answer_text,
    think_span,
    think_text,
    well_formed,
    without_tags,
)

__all__ = [
    "Short",
    "answer_span",
    "answer_text",
    "correct",
    "normalise_answer",
    "read_expression",
    "read_integer",
    "tag_format",
    "think_span",
    "think_text",
    "well_formed",
    "without_tags",
    "written_length",
]
