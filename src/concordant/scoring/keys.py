"""Names for results: which code a reward is, and which inputs a call had. Equal names, equal results."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

from concordant.scoring import arrays
from concordant.scoring.code import Digest
from concordant.scoring.isolation import isolation
from concordant.scoring.reward import Context, Reward

_PROCESS = os.urandom(16)
_text: Callable[[str], str] = encode_basestring_ascii


def fingerprint(reward: Reward) -> bytes:
    """Name the code of a reward: 16 bytes that change whenever its results might.

    Counted: the function's bytecode and constants and those of everything it reaches in its own module and in the
    user's other modules; the whole file for a reward given as `file.py:name`; parameters (fields of a dataclass,
    attributes of an object, closures, defaults); versions of libraries it uses; `version`, level and style; the
    isolation of programs in this process.
    Not counted: name, time limit, retries, rate, policy, comments (unless given as `file.py:name`).

    A reward that holds something which cannot be compared between processes (an open client, a loaded model) gets a
    name that is valid in this process only, unless `version` says what it is.
    """
    digest = _describe(reward)
    if digest.opaque and not reward.version:
        digest.word("process", _PROCESS)
    return digest.hash.digest()


def lasting(reward: Reward) -> bool:
    """Return whether the fingerprint is the same in every process that has the same code."""
    return bool(reward.version) or not _describe(reward).opaque


def _describe(reward: Reward) -> Digest:
    function = reward.function
    digest = Digest(getattr(function, "__module__", None) or "")
    digest.word("concordant reward 1", reward.version, reward.level, reward.style, isolation())
    digest.add(function)
    if reward.origin:
        path, _, name = reward.origin.rpartition(":")
        digest.word("origin", name)
        digest.file(path)
        called = function if hasattr(function, "__globals__") else type(function).__call__
        digest.siblings(getattr(called, "__globals__", {}))
    return digest


def key(fingerprint: bytes, inputs: Mapping[str, Any], seed: int | Context | None = None) -> bytes | None:
    """Name one call: 16 bytes (blake2b) of the code's name and the canonical JSON of what the call reads.

    Args:
        fingerprint: of the reward.
        inputs: exactly the fields that the reward reads; for rewards of groups the lists of the group.
        seed: what else the result depends on; the whole `Context` for rewards that take `context`, else None.

    Returns:
        The key; None if an input is no JSON (another type than text, number, bool, None, list, mapping with text keys,
        or numpy array of numbers; a tuple is none either), so that the call cannot be named and its result is not
        cached. An array counts with its type, shape and bytes.
    """
    try:
        text = _json({name: inputs[name] for name in sorted(inputs)})
    except (TypeError, ValueError, RecursionError):
        return None
    return _hash(fingerprint + _seed(seed), text)


def row_keys(
    fingerprint: bytes,
    fields: Mapping[str, Sequence[Any]],
    seeds: Sequence[int | Context] | None = None,
) -> list[bytes | None]:
    """Return `key` of every row of columns at once, several times faster than one by one.

    Args:
        fingerprint: of the reward.
        fields: `fields[name][row]`, exactly the fields that the reward reads, all of one length.
        seeds: one for each row, for rewards that take `context`.
    """
    names = sorted(fields)
    columns = [_column(fields[name]) for name in names]
    if not names or any(column is None for column in columns):
        rows = len(seeds) if seeds is not None else len(next(iter(fields.values()), ()))
        each = seeds if seeds is not None else [None] * rows
        return [
            key(fingerprint, {n: fields[n][row] for n in names}, seed)
            for row, seed in zip(range(rows), each, strict=True)
        ]
    form = "{" + ",".join(_text(name).replace("%", "%%") + ":%s" for name in names) + "}"
    texts = [form % row for row in zip(*columns, strict=True)]
    if seeds is None:
        start = fingerprint + _seed(None)
        return [hashlib.blake2b(start + text.encode(), digest_size=16).digest() for text in texts]
    return [_hash(fingerprint + _seed(seed), text) for text, seed in zip(texts, seeds, strict=True)]


def _column(values: Sequence[Any]) -> list[str] | None:
    """Canonical JSON of every value of a column; None where one has none."""
    if set(map(type, values)) == {str}:
        return list(map(_text, values))
    try:
        return list(map(_json, values))
    except (TypeError, ValueError, RecursionError):
        return None


def _hash(start: bytes, text: str) -> bytes:
    return hashlib.blake2b(start + text.encode(), digest_size=16).digest()


def _seed(seed: int | Context | None) -> bytes:
    if isinstance(seed, Context):
        return f"[{seed.step},{seed.total},{seed.seed},{seed.policy_version}]".encode()
    return b"" if seed is None else b"%d" % seed


def _json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII. Exact types only: what a reward can tell apart stays apart."""
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind is float or kind is int:
        return repr(value)  # `nan` and `inf` included, as Python writes them
    if value is None or kind is bool:
        return "null" if value is None else "true" if value else "false"
    if kind is list:
        return "[" + ",".join(map(_json, value)) + "]"
    if kind is dict:
        parts = []
        for name in sorted(value):
            if type(name) is not str:
                raise TypeError("a key that is no text")
            parts.append(f"{_text(name)}:{_json(value[name])}")
        return "{" + ",".join(parts) + "}"
    if arrays.is_array(value):
        return arrays.name(value)
    raise TypeError(f"{kind.__name__} is no JSON")
