r"""Finding the final answer in a completion: answer block, `\boxed{}`, `####`, or a pattern of the user's."""

import re

from concordant.core.errors import RewardError, nearest
from concordant.rewards.patterns import search
from concordant.rewards.text import answer_text

PLACES = ("auto", "answer", "block", "boxed", "hash", "whole")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.S)


def boxed_text(text: str) -> str | None:
    r"""Return what stands in the last `\boxed{...}` whose braces balance, or None.

    Escaped braces (`\{`) are content. A box that is never closed does not count, nor does any box before it: the
    writer was cut off while giving the answer. Linear in the length of the text.

    >>> boxed_text(r"so \boxed{\frac{1}{2}}"), boxed_text(r"\boxed{1} no, \boxed{2"), boxed_text("7")
    ('\\frac{1}{2}', None, None)
    """
    start = -1
    for match in _BOX.finditer(text):
        start = match.end()
    if start < 0:
        return None
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[start : match.start()].strip()
    return None


def hash_text(text: str) -> str | None:
    r"""Return the rest of the line after the last `####` (the GSM8K convention), or None.

    >>> hash_text("6*7=42\n#### 42"), hash_text("42")
    ('42', None)
    """
    _, mark, tail = text.rpartition("####")
    return tail.strip().partition("\n")[0].strip() if mark else None


def extract_answer(text: str, where: str = "auto") -> str | None:
    r"""Return the final answer as it is written in `text`, or None when there is none.

    Args:
        text: a completion or a gold solution.
        where: `answer` the last `<answer>` block; `boxed` the last `\boxed{}`; `hash` the line after the last `####`;
            `whole` everything; `block` the answer block, or everything when there is none; `auto` the first of answer
            block (and the box inside it, if there is one), box, `####` that is present, else the whole text where
            it is one line of at most 200 characters. Anything else is a regular expression, whose last match
            counts (its first group, if it has one); it is given up after half a second.

    >>> extract_answer(r"<think>\boxed{1}</think><answer>it is \boxed{2}</answer>")
    '2'
    >>> extract_answer("Answer: 3. Answer: 4.", where=r"Answer: (\d+)")
    '4'
    """
    if where == "whole":
        return text.strip()
    if where == "block":
        found = answer_text(text)
        return text.strip() if found is None else found
    if where in ("answer", "boxed", "hash"):
        return {"answer": answer_text, "boxed": boxed_text, "hash": hash_text}[where](text)
    if where == "auto":
        return _auto(text)
    if where.isidentifier():
        raise RewardError(f"no place {where!r} to look for an answer; {nearest(where, PLACES)}")
    match = search(where, text, last=True)
    return None if match is None else (match[1] if match.re.groups else match[0] or "").strip()


def _auto(text: str) -> str | None:
    block = answer_text(text)
    if block is not None:
        return boxed_text(block) if _BOX.search(block) else block
    if _BOX.search(text):
        return boxed_text(text)
    marked = hash_text(text)
    if marked is not None:
        return marked
    bare = text.strip()
    return bare if bare and len(bare) <= 200 and "\n" not in bare else None
