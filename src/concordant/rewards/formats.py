"""Format rewards: tags in order, JSON by a schema."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from concordant.core.errors import RewardError

_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)```", re.S)


@dataclass(frozen=True)
class TagFormat:
    """Reward 1.0 when every tag has its block, as often and in the order asked for, else 0.0.

    Range: {0, 1}. A block is `<tag>...</tag>` without any of these tags inside. With the defaults this is
    `tag_format`. Time is linear in the length of the text. [code: the think/answer pattern of open-r1 and TRL]

    >>> TagFormat()("<think></think><answer>2</answer>"), TagFormat(filled=True)("<think></think><answer>2</answer>")
    (1.0, 0.0)
    >>> TagFormat(("plan", "code"), only=False)("Sure. <plan>sort</plan> now <code>x</code>")
    1.0
    """

    tags: tuple[str, ...] = ("think", "answer")
    once: bool = True
    """Each tag has exactly one block; otherwise at least one."""
    ordered: bool = True
    """The first blocks of the tags follow each other in the order of `tags`."""
    only: bool = True
    """Nothing but white space stands outside the blocks."""
    filled: bool = False
    """Every block holds more than white space."""

    def __post_init__(self) -> None:
        distinct = self.tags and len(set(self.tags)) == len(self.tags)
        if not distinct or any(set(tag) & set("<>/ ") for tag in self.tags):
            raise RewardError(f"tags are distinct names without brackets, got {self.tags}")

    def __call__(self, completion: str) -> float:
        """Judge one completion."""
        found = self._blocks(completion)
        if found is None:
            return 0.0
        names, contents, outside = found
        if set(names) != set(self.tags) or (self.once and len(names) != len(self.tags)):
            return 0.0
        firsts = [names.index(tag) for tag in self.tags]
        if self.ordered and firsts != sorted(firsts):
            return 0.0
        if self.filled and not all(map(str.strip, contents)):
            return 0.0
        return float(not self.only or not outside.strip())

    def _blocks(self, text: str) -> tuple[list[str], list[str], str] | None:
        """The tags of the blocks, what stands in them and all text outside; None where tags do not pair up."""
        names, contents, outside, end, opened = list[str](), list[str](), list[str](), 0, ""
        for match in re.finditer(f"<(/?)({'|'.join(map(re.escape, self.tags))})>", text):
            if (match[1] == "/") != bool(opened) or (opened and match[2] != opened):
                return None
            between = text[end : match.start()]
            if opened:
                names.append(opened)
                contents.append(between)
                opened = ""
            else:
                outside.append(between)
                opened = match[2]
            end = match.end()
        return None if opened else (names, contents, "".join([*outside, text[end:]]))


@dataclass(frozen=True)
class JsonFormat:
    """Reward 1.0 when the completion is JSON that its schema accepts, else 0.0.

    Range: {0, 1}. Strict JSON: `NaN`, `Infinity`, repeated keys and trailing text are refused, as is nesting that
    Python cannot read. References to other documents in the schema are not fetched. A schema that is none is an error
    when the reward is made.

    >>> judge = JsonFormat({"type": "object", "required": ["name"], "properties": {"age": {"type": "integer"}}})
    >>> judge('{"name": "Ann", "age": 3}'), judge('{"age": 3}'), judge("Ann")
    (1.0, 0.0, 0.0)
    """

    schema: Mapping[str, Any]
    """A JSON schema; an empty one accepts any JSON."""
    where: Literal["auto", "whole", "fence"] = "auto"
    """`whole`: the completion is the JSON; `fence`: it is in the last fenced block; `auto`: in the last fenced block
    if there is one, else the whole."""

    def __post_init__(self) -> None:
        _validator(json.dumps(self.schema, sort_keys=True))

    def __call__(self, completion: str) -> float:
        """Judge one completion."""
        fenced = _FENCE.findall(completion) if self.where != "whole" else []
        if self.where == "fence" and not fenced:
            return 0.0
        try:
            value = read_json(fenced[-1] if fenced else completion)
            return float(_validator(json.dumps(self.schema, sort_keys=True)).is_valid(value))
        except (ValueError, RecursionError):
            return 0.0


def read_json(text: str) -> Any:
    """Read strict JSON, which has no repeated keys and no NaN.

    Raises:
        ValueError: for anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("repeated key")
        return found

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    import jsonschema
    import referencing

    rules = json.loads(schema)
    kind = jsonschema.validators.validator_for(rules, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(rules)
    except jsonschema.SchemaError as error:
        raise RewardError(f"this is not a JSON schema: {error.message}") from None
    return kind(rules, registry=referencing.Registry())
