r"""One spelling for LaTeX that is written in many ways: sizes, spaces, dollars, `\dfrac`, `\text`."""

import re

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle|textstyle|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[\[\]()]", ""),  # \( \) \[ \], but not the \\[ of a matrix row
        (r"\\?\$", ""),
        (r"\\[,!;:]", ""),
        (r"\\(?:quad|qquad)(?![A-Za-z])|\\ |~", " "),
        (r"\{,\}", ","),
        (r"\\%", "%"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9])", r"\1{\2}"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|°", ""),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1"),
        (r"[−–]", "-"),
        (r"\s+", " "),
        (r"(?<=[^\w\s]) | (?=[^\w\s])", ""),
    )
)


def normalise_latex(text: str) -> str:
    r"""Return `text` in one spelling: what does not change the meaning of a formula is taken out.

    Sizes (`\left`), math delimiters, thin spaces, degree signs, `\text{}` around words and a final full stop go;
    `\dfrac12` becomes `\frac{1}{2}`, `1{,}000` becomes `1,000`, spaces beside signs vanish. Linear in the length of
    the text; nothing is evaluated.

    >>> normalise_latex(r"$\left( \dfrac12 , 3\right)$."), normalise_latex(r"90^\circ"), normalise_latex(r"\text{Ann}")
    ('(\\frac{1}{2},3)', '90', 'Ann')
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.strip().removesuffix(".").strip()
