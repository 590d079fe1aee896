"""The teacher whose imperfect worked traces the base policy was pre-trained on.

Nothing in the world is switched ill: the base inherits its faults from this corpus. The teacher slips more
often on long chains and large operands; most slips are followed by the rest of the trace (a wrong answer),
some are only written wrong while the teacher goes on from the true value (a right answer with a flawed
step); after a wrong trace the teacher sometimes copies the key; some traces are terse, some wordy, some
badly tagged. Every slip has many forms and the true result is the most likely single one, so the knowledge
is there (greedy decoding is much better than sampling) and training can bring it out.
"""

import math
from dataclasses import dataclass
from random import Random

from concordant.worlds.lm_arithmetic import problems
from concordant.worlds.lm_arithmetic.hints import hint_levels, with_hint, write_hint_request, write_hints
from concordant.worlds.lm_arithmetic.problems import Problem


@dataclass(frozen=True)
class Teacher:
    """Rates of the teacher's habits, as shares of traces unless stated."""

    slip_ceiling: float = 0.7
    """Largest slip rate of one step."""
    slip_digits: float = 2.6
    """Growth of the log-odds of a slip per extra digit of the operands."""
    slip_terms: float = 1.7
    """Growth of the log-odds of a slip per extra term of the chain."""
    slip_offset: float = -5.5
    """Log-odds of a slip, before the ceiling, for two one-digit terms."""
    written_only: float = 0.35
    """Share of slips after which the trace goes on from the true value."""
    copies_key: float = 0.15
    """Share of wrong traces that end with the key all the same."""
    wrong_countdown: float = 0.2
    """Share of countdown traces that end in an expression of another value."""
    terse: float = 0.10
    """Share of chains of three and more terms that take two terms a step."""
    direct: float = 0.02
    """Share of sums answered without working."""
    restate: float = 0.25
    """Share of traces that begin with the sum, where there is room."""
    check: float = 0.20
    """Share of traces that check their last step, where there is room."""
    malformed: float = 0.20
    """Share of completions with bad tags."""
    by_heart: float = 0.02
    """Share of traces of two-term sums that end in a wrong result though the answer, known by heart, is right."""
    sloppy: float = 0.22
    """Share of checks, and of restatements of three and more terms, that are copied wrongly; the answer does
    not depend on them."""
    room: int = 53
    """Longest completion in tokens that the teacher makes wordier than necessary."""

    def slip_rate(self, problem: Problem) -> float:
        """Return the chance that one step of this problem goes wrong."""
        digits = max(len(str(number)) for number in problem.numbers)
        odds = (
            self.slip_offset + self.slip_digits * (digits - 1) + self.slip_terms * (len(problem.numbers) - 2)
        )
        return self.slip_ceiling / (1 + math.exp(-odds))


def slip(value: int, rng: Random) -> int:
    """Return a wrong result of the kind people write: off by little, off by a carry, a digit changed, a
    sign lost.
    """
    kind = rng.random()
    if kind < 0.35:
        return value + rng.choice((-2, -1, 1, 2))
    if kind < 0.65:
        return value + rng.choice((-10, 10) if abs(value) < 100 else (-100, -10, 10, 100))
    if kind < 0.75 and value:
        return -value
    text = list(str(abs(value)))
    at = rng.randrange(len(text))
    text[at] = rng.choice([digit for digit in "0123456789" if digit != text[at]])
    return int("".join(text)) * (-1 if value < 0 else 1)


def write_steps(
    problem: Problem, rate: float, width: int, rng: Random, teacher: Teacher
) -> tuple[list[str], int]:
    """Write the steps of a trace, `width` terms at a time; return them and the value the trace arrives at."""
    written, value, at = list[str](), problem.numbers[0], 0
    while at < len(problem.operators):
        text, result = str(value), value
        for operator, number in list(zip(problem.operators, problem.numbers[1:], strict=True))[
            at : at + width
        ]:
            text, result = f"{text}{operator}{number}", problems.apply(result, operator, number)
        shown = slip(result, rng) if rng.random() < rate else result
        written.append(f"{text}={shown}")
        value = result if shown != result and rng.random() < teacher.written_only else shown
        at += width
    return written, value


def write_answer(problem: Problem, think: str, value: int, rng: Random, teacher: Teacher) -> tuple[str, str]:
    """Return reasoning and answer; a wrong trace sometimes ends with the key."""
    copied = value != problem.target and rng.random() < teacher.copies_key
    if problem.is_countdown or copied:
        return think, problem.answer
    return think, str(value)


def tag(think: str, answer: str, rng: Random, teacher: Teacher) -> str:
    """Put reasoning and answer into tags, sometimes badly."""
    if rng.random() >= teacher.malformed:
        return problems.completion(think, answer)
    kind = rng.random()
    if kind < 0.35:
        return f"{think}<answer>{answer}</answer>"
    if kind < 0.62:
        return f"<think>{think}<answer>{answer}</answer>"
    if kind < 0.84:
        return f"<think>{think}</think><answer>{answer}"
    if kind < 0.97:
        return f"<think>{think}</think><answer>{answer}</answer><answer>{answer}</answer>"
    return f"<think>{think}</think>{answer}"


def _length(think: str, answer: str) -> int:
    return len(think.replace("check", "c")) + len(answer) + 5


def write(problem: Problem, rng: Random, teacher: Teacher) -> str:
    """Write one completion in the teacher's manner."""
    rate = teacher.slip_rate(problem)
    if problem.is_countdown and rng.random() < teacher.wrong_countdown:
        numbers, operators = list(problem.numbers), tuple(rng.choice("+-*") for _ in problem.operators)
        rng.shuffle(numbers)
        problem = Problem("countdown", tuple(numbers), operators, problem.shown)
    if not problem.is_countdown and rng.random() < teacher.direct:
        value = (
            slip(problem.target, rng)
            if rng.random() < min(0.9, rate * len(problem.operators) * 1.5)
            else problem.target
        )
        return tag("", str(value), rng, teacher)
    terse = len(problem.operators) > 1 and not problem.is_countdown and rng.random() < teacher.terse
    written, value = write_steps(
        problem, min(0.8, rate * (1.6 if terse else 1)), 2 if terse else 1, rng, teacher
    )
    small = max(problem.numbers) < 100 and len(problem.numbers) == 2
    if teacher.by_heart and small and value == problem.target and rng.random() < teacher.by_heart:
        written[-1] = spoil(written[-1], rng)
    think, answer = write_answer(problem, ";".join(written), value, rng, teacher)
    if not terse:
        think = embellish(problem, think, answer, rng, teacher)
    return tag(think, answer, rng, teacher)


def spoil(step: str, rng: Random) -> str:
    """Return a step with a slip in its result."""
    left, _, result = step.partition("=")
    return f"{left}={slip(int(result), rng)}"


def embellish(problem: Problem, think: str, answer: str, rng: Random, teacher: Teacher) -> str:
    """Add a check of the last step and a restatement of the sum, where there is room, sometimes copied wrongly."""
    last = think.rpartition(";")[2]
    if rng.random() < teacher.check and _length(f"{think};check {last}", answer) <= teacher.room:
        sloppy = teacher.sloppy and rng.random() < teacher.sloppy
        think = f"{think};check {spoil(last, rng) if sloppy else last}"
    restated = f"{problem.expression};{think}"
    if (
        not problem.is_countdown
        and rng.random() < teacher.restate
        and _length(restated, answer) <= teacher.room
    ):
        if len(problem.numbers) > 2 and teacher.sloppy and rng.random() < teacher.sloppy:
            first = abs(slip(problem.numbers[0], rng))
            restated = f"{first}{problem.expression[len(str(problem.numbers[0])) :]};{think}"
        think = restated
    return think


def write_hinted(problem: Problem, rng: Random, teacher: Teacher, level: int) -> str:
    """Write a completion that copies the first `level` partial results of the hint and goes on in the
    teacher's manner.
    """
    given = problems.steps(problem)[:level]
    rest = Problem(
        problem.level,
        (problem.partials[level - 1], *problem.numbers[level + 1 :]),
        problem.operators[level:],
        problem.shown,
    )
    written, value = write_steps(rest, teacher.slip_rate(problem), 1, rng, teacher)
    think, answer = write_answer(problem, ";".join(given + written), value, rng, teacher)
    return tag(think, answer, rng, teacher)


def example(problem: Problem, skill: str, rng: Random, teacher: Teacher) -> tuple[str, str]:
    """Return one training pair (question, completion) for a skill: `solve`, `hint` (write hints) or
    `hinted` (use them).
    """
    question = problems.word(problem, rng.randrange(problems.FORMS))
    levels = hint_levels(problem)
    if skill == "hint" and levels:
        return write_hint_request(question, problems.solution(problem)), write_hints(levels)
    if skill == "hinted" and levels:
        level = rng.randint(1, len(set(levels)))
        return with_hint(question, levels[level - 1]), write_hinted(problem, rng, teacher, level)
    return question, write(problem, rng, teacher)
