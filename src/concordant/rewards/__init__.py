"""Reward functions: plain, documented, called with a rollout's fields by name; higher is better.

A reward returns a number, a `Verdict`, or None when it cannot judge. Parametrised rewards are small frozen
dataclasses, because worker processes need to pickle them. Nothing heavy is imported before it is called for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from concordant.rewards.answers import correct, normalise_answer
from concordant.rewards.extract import boxed_text, extract_answer, hash_text
from concordant.rewards.formats import JsonFormat, TagFormat
from concordant.rewards.grading import ExactAnswer, NumericAnswer, exact_answer, numeric_answer
from concordant.rewards.latex import normalise_latex
from concordant.rewards.layout import Short, tag_format, written_length
from concordant.rewards.lengths import (
    CosineLength,
    GroupLengthBand,
    KimiLength,
    LengthBand,
    LinearLength,
    SoftOverlong,
    length_penalty,
)
from concordant.rewards.maths import MathAnswer, math_answer
from concordant.rewards.numbers import read_expression, read_integer
from concordant.rewards.overlap import Bleu, Chrf, Rouge, exact_text, token_f1
from concordant.rewards.patterns import Matches
from concordant.rewards.quantity import Quantity, read_quantity
from concordant.rewards.repetition import NgramRepetition
from concordant.rewards.sets import SetFBeta, f_beta
from concordant.rewards.text import (
    answer_span,
    answer_text,
    think_span,
    think_text,
    well_formed,
    without_tags,
)

if TYPE_CHECKING:
    from concordant.rewards.code import CodeChecks, CodeTests, extract_code
    from concordant.rewards.judge import Judge, PairJudge

_LATER = {
    **dict.fromkeys(("CodeChecks", "CodeTests", "extract_code"), "concordant.rewards.code"),
    **dict.fromkeys(("Judge", "PairJudge"), "concordant.rewards.judge"),
}

__all__ = [
    "Bleu",
    "Chrf",
    "CodeChecks",
    "CodeTests",
    "CosineLength",
    "ExactAnswer",
    "GroupLengthBand",
    "JsonFormat",
    "Judge",
    "KimiLength",
    "LengthBand",
    "LinearLength",
    "Matches",
    "MathAnswer",
    "NgramRepetition",
    "NumericAnswer",
    "PairJudge",
    "Quantity",
    "Rouge",
    "SetFBeta",
    "Short",
    "SoftOverlong",
    "TagFormat",
    "answer_span",
    "answer_text",
    "boxed_text",
    "correct",
    "exact_answer",
    "exact_text",
    "extract_answer",
    "extract_code",
    "f_beta",
    "hash_text",
    "length_penalty",
    "math_answer",
    "normalise_answer",
    "normalise_latex",
    "numeric_answer",
    "read_expression",
    "read_integer",
    "read_quantity",
    "tag_format",
    "think_span",
    "think_text",
    "token_f1",
    "well_formed",
    "without_tags",
    "written_length",
]


def __getattr__(name: str) -> Any:
    """Import judges and sandboxes when they are asked for: they bring an event loop and processes with them."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
