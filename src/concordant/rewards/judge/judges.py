"""The judges: one text on a scale, or two against each other in both orders."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from concordant.core.errors import RewardError
from concordant.rewards.judge.prompt import SYSTEM, compose, make_code, plain_prompt
from concordant.rewards.judge.reply import Abstained, read_reply, read_score, read_winner
from concordant.rewards.judge.server import Server
from concordant.scoring.reward import Verdict

Prompt = str | Sequence[Mapping[str, Any]]
_POINT = "Grade the ANSWER to the TASK{by_reference} on a scale from {low} (worst) to {high} (best)."
_PAIR = "Say which of the two answers to the TASK{by_reference} is better: A, B, or tie."
_BY_REFERENCE = ", using the REFERENCE, which is known to be right,"
_SCORE = '"reason": "one sentence", "score": a number'
_WINNER = '"reason": "one sentence", "winner": "A" or "B" or "tie"'


@dataclass(frozen=True, kw_only=True)
class _Judging(Server):
    """What both judges share: criteria, limits, and asking one hardened question."""

    criteria: str = "Is the answer correct, complete and helpful?"
    """What makes an answer good; the only part of the prompt that is yours."""
    max_chars: int = 20_000
    """Longest text that is shown to the judge; a longer one makes it abstain."""
    use_answer: bool = True
    """Whether the field `answer`, where the data has it, is shown as a reference that is known to be right."""
    system_role: bool = True
    """Whether the rules go into a system message; False for models whose template has none."""

    @property
    def version(self) -> str:
        """Model and digest of the prompt and its options: a verdict of another version is another verdict."""
        words = (SYSTEM, _POINT, _PAIR, _SCORE, _WINNER, self.criteria)
        numbers = (self._scale, self.max_tokens, self.seed, self.max_chars)
        flags = (self.json_mode, self.system_role, self.use_answer)
        return f"{self.model}:{hashlib.sha256(repr((words, numbers, flags)).encode()).hexdigest()[:12]}"

    @property
    def _scale(self) -> tuple[float, ...]:
        return ()

    async def _question(
        self, wording: str, prompt: Prompt, answer: Any, candidates: Mapping[str, str], reply: str
    ) -> dict[str, Any]:
        """Ask, and return the JSON object that came back."""
        reference = {"REFERENCE": str(answer)} if self.use_answer and answer is not None else {}
        instructions = wording.replace("{by_reference}", _BY_REFERENCE if reference else "")
        texts = {"TASK": plain_prompt(prompt), **reference, **candidates}
        for name, text in texts.items():
            if len(text) > self.max_chars:
                raise Abstained(f"the {name.lower()} is longer than {self.max_chars} characters")
        code = make_code(self.version, texts)
        question = compose(f"{instructions}\n{self.criteria}", texts, reply, code)
        system = [{"role": "system", "content": SYSTEM}] if self.system_role else []
        content = question if self.system_role else f"{SYSTEM}\n\n{question}"
        return read_reply(await self.ask([*system, {"role": "user", "content": content}]), code)

    def _abstention(self, error: Abstained) -> Verdict:
        return Verdict(None, kind="judge", detail={"reason": str(error), "judge": self.version})


@dataclass(frozen=True, kw_only=True)
class Judge(_Judging):
    """Reward what a language model says a completion is worth, from 0 (`low`) to 1 (`high`).

    Range: [0, 1]. The completion, the prompt and, where the data has it, the reference `answer` are shown as quoted
    material inside a fence whose code they cannot know; the reply must be one JSON object with that code and a score
    in range. Everything else is an abstention with its reason, never 0 or 1: a reply that was cut off, other JSON, a
    missing code, a score that is a string or out of range, a text longer than `max_chars`. A busy, broken or slow
    server raises `TransientError`, so that the engine tries again. An empty completion is worth 0.0 unasked, because
    judges are known to pay for empty answers. Temperature is 0 and `seed` is sent.

    What this cannot do: stop a weak model from being persuaded. Compare it with a key now and then. [derived]

    >>> judge = Judge(model="qwen", criteria="Is it true?", api_key_env="JUDGE_KEY")
    >>> judge.version.partition(":")[0], judge.api_key_env
    ('qwen', 'JUDGE_KEY')
    """

    low: float = 0.0
    high: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise RewardError(f"the scale needs low < high, got {self.low} and {self.high}")

    @property
    def _scale(self) -> tuple[float, ...]:
        return self.low, self.high

    async def __call__(self, completion: str, prompt: Prompt = "", answer: Any = None) -> Verdict:
        """Judge one completion."""
        if not completion.strip():
            return Verdict(0.0, kind="empty", detail={"judge": self.version})
        wording = _POINT.replace("{low}", f"{self.low:g}").replace("{high}", f"{self.high:g}")
        try:
            found = await self._question(wording, prompt, answer, {"ANSWER": completion}, _SCORE)
            score = read_score(found, self.low, self.high)
        except Abstained as error:
            return self._abstention(error)
        detail = {"judge": self.version, "said": str(found.get("reason", ""))[:300]}
        return Verdict(score, kind="judge", detail=detail)


@dataclass(frozen=True, kw_only=True)
class PairJudge(_Judging):
    """Reward 1.0 when a language model prefers the completion to its `rival`, 0.0 when it prefers the rival.

    Range: {0, 0.5, 1}. Both orders are asked, at the same time: whoever wins must win as A and as B, and a tie (0.5)
    must be one in both; otherwise the judge was swayed by the position, and abstains. Equal texts tie unasked. Fences,
    replies and errors are as in `Judge`. `rival` is a field of the data, e.g. an earlier answer. [derived; swapping
    against position bias: paper, arXiv 2306.05685]
    """

    async def __call__(self, completion: str, rival: str, prompt: Prompt = "", answer: Any = None) -> Verdict:
        """Compare one completion with its rival."""
        if completion.strip() == rival.strip():
            return Verdict(0.5, kind="equal", detail={"judge": self.version})
        try:
            orders = (
                {"ANSWER A": completion, "ANSWER B": rival},
                {"ANSWER A": rival, "ANSWER B": completion},
            )
            asked = (self._question(_PAIR, prompt, answer, order, _WINNER) for order in orders)
            forward, backward = map(read_winner, await asyncio.gather(*asked))
        except Abstained as error:
            return self._abstention(error)
        if {"A": "B", "B": "A", "tie": "tie"}[backward] != forward:
            return self._abstention(Abstained(f"the orders disagree: {forward} first, {backward} swapped"))
        score = {"A": 1.0, "B": 0.0, "tie": 0.5}[forward]
        return Verdict(score, kind="judge", detail={"judge": self.version})
