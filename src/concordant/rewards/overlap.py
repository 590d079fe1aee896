"""Text overlap with references: BLEU and chrF by sacrebleu, ROUGE by rouge-score, token F1 and exact match of SQuAD.

These reward the words of a reference, not its meaning: a negated sentence scores high. All are in [0, 1], and the
reference is the field `answer`, one text or a list of them. BLEU, chrF and ROUGE need the extra `text`.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from concordant.core.errors import RewardError
from concordant.rewards.extract import extract_answer
from concordant.rewards.grading import missing
from concordant.scoring.reward import Verdict

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def references(answer: str | Sequence[str]) -> list[str]:
    """Return the references as a list."""
    return [str(answer)] if isinstance(answer, str | int | float) else list(answer)


def _texts(completion: str, answer: str | Sequence[str], where: str) -> tuple[str, list[str]] | Verdict:
    """The text to judge ("" where there is none) and the references, or the verdict where there are none."""
    known = [text for text in references(answer) if text.strip()]
    if not known:
        return missing("the reference is empty")
    return extract_answer(completion, where) or "", known


def _extra(name: str) -> RewardError:
    return RewardError(f"this reward needs {name}: pip install 'concordant[text]'")


@dataclass(frozen=True)
class Bleu:
    """Reward the sentence BLEU of sacrebleu, divided by 100.

    Range: [0, 1]. Effective order and exponential smoothing, which short texts need; several references count
    together. An empty text is 0.0, an empty reference missing. [code: sacrebleu]

    >>> Bleu()("the cat sat on the mat", "the cat sat on the mat"), Bleu()("dog", "the cat")
    (1.0, 0.0)
    """

    lowercase: bool = False
    tokenize: str = "13a"
    """sacrebleu's tokeniser: `13a`, `intl`, `char`, `zh` ..."""
    where: str = "block"
    """Which part of the completion counts, see `extract_answer`; by default its answer block, else all of it."""

    def __call__(self, completion: str, answer: str | Sequence[str]) -> float | Verdict:
        """Judge one completion by its references."""
        found = _texts(completion, answer, self.where)
        if isinstance(found, Verdict):
            return found
        score = _sacrebleu("BLEU", lowercase=self.lowercase, tokenize=self.tokenize, effective_order=True)
        return min(score.sentence_score(*found).score / 100, 1.0)


@dataclass(frozen=True)
class Chrf:
    """Reward the sentence chrF of sacrebleu, divided by 100; `words=2` is chrF++.

    Range: [0, 1]. F of character n-grams up to `order`, recall counting `beta` times as much; the best reference
    counts. An empty text is 0.0, an empty reference missing. [code: sacrebleu]

    >>> Chrf()("the cat", "the cat"), round(Chrf()("the cat", "the hat"), 4)
    (1.0, 0.2806)
    """

    order: int = 6
    words: int = 0
    beta: int = 2
    where: str = "block"

    def __call__(self, completion: str, answer: str | Sequence[str]) -> float | Verdict:
        """Judge one completion by its references."""
        found = _texts(completion, answer, self.where)
        if isinstance(found, Verdict):
            return found
        score = _sacrebleu("CHRF", char_order=self.order, word_order=self.words, beta=self.beta)
        return min(score.sentence_score(*found).score / 100, 1.0)


@dataclass(frozen=True)
class Rouge:
    """Reward ROUGE by rouge-score: `rouge1`, `rouge2` ... share n-grams, `rougeL` a longest common subsequence.

    Range: [0, 1]; the best reference counts. Time of `rougeL` grows with the product of the two lengths. Letters and
    digits of the Latin alphabet only, as in the original: other scripts score 0.0, use `Chrf` there. An empty text is
    0.0, an empty reference missing. [code: rouge-score]

    >>> Rouge("rouge1")("the cat sat", "the cat"), Rouge("rougeL", measure="recall")("cat the", "the cat")
    (0.8, 0.5)
    """

    kind: str = "rougeL"
    measure: Literal["fmeasure", "precision", "recall"] = "fmeasure"
    stem: bool = False
    """Whether words are cut to their English stems first."""
    where: str = "block"

    def __call__(self, completion: str, answer: str | Sequence[str]) -> float | Verdict:
        """Judge one completion by its references."""
        found = _texts(completion, answer, self.where)
        if isinstance(found, Verdict):
            return found
        scorer = _rouge(self.kind, self.stem)
        return max(float(getattr(scorer.score(text, found[0])[self.kind], self.measure)) for text in found[1])


def normalise_text(text: str) -> str:
    """Lower the case, drop punctuation and articles, and collapse white space, as SQuAD's evaluation does.

    >>> normalise_text("The  Eiffel Tower!")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_text(completion: str, answer: str | Sequence[str]) -> float:
    """Reward 1.0 when the answer equals a reference after `normalise_text`, else 0.0.

    The answer block counts, or all of the completion when there is none. [code: SQuAD evaluation]

    >>> exact_text("<answer>The Eiffel tower.</answer>", ["Eiffel Tower", "tour Eiffel"]), exact_text("Paris", "Eiffel")
    (1.0, 0.0)
    """
    given = normalise_text(extract_answer(completion, "block") or "")
    return float(any(given == normalise_text(text) for text in references(answer)))


def token_f1(completion: str, answer: str | Sequence[str]) -> float:
    """Reward the F1 of the words shared with the best reference, after `normalise_text`.

    Range: [0, 1]. Words count as often as they occur in both. When either side has no words the result is 1.0 if both
    have none, else 0.0. The answer block counts, or all of the completion when there is none.
    [code: SQuAD evaluation]

    >>> token_f1("a red big dog", "the big dog"), token_f1("", "")
    (0.8, 1.0)
    """
    given = normalise_text(extract_answer(completion, "block") or "").split()
    return max((_f1(given, normalise_text(text).split()) for text in references(answer)), default=0.0)


def _f1(given: list[str], key: list[str]) -> float:
    if not given or not key:
        return float(given == key)
    return 2 * (Counter(given) & Counter(key)).total() / (len(given) + len(key))


@lru_cache(maxsize=16)
def _sacrebleu(name: str, **options: Any) -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise _extra("sacrebleu") from None
    return getattr(metrics, name)(**options)


@lru_cache(maxsize=16)
def _rouge(kind: str, stem: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _extra("rouge-score") from None
    return RougeScorer([kind], use_stemmer=stem)
