"""Numpy arrays as fields of a row: sent to workers, named for the cache, written as JSON and read back exactly.

Only plain numbers are arrays here (booleans, integers, floats, complex numbers): nothing is ever unpickled from a file.
Neither torch nor numpy is imported before there is an array.
"""

import base64
import binascii
import hashlib
import io
import json
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from concordant.core.errors import DataError

if TYPE_CHECKING:
    import numpy as np

MARK = "concordant.array"
"""The key by which a JSON object is known to be an array: `{"concordant.array": "|u1", "shape": [1], "data": "AA=="}`.
The type as numpy writes it, and the bytes, last axis fastest, in base64."""
_PLAIN = "biufc"
_KEYS = {MARK, "shape", "data"}


def is_array(value: Any) -> bool:
    """Whether a value is a numpy array of plain numbers; a subclass (masked, matrix) is none.

    >>> import numpy as np
    >>> is_array(np.zeros(2)), is_array([0.0]), is_array(np.array([None]))
    (True, False, False)
    """
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and value.dtype.kind in _PLAIN


def _buffer(array: "np.ndarray[Any, Any]") -> memoryview:
    """The bytes of an array, last axis fastest, copied only if they do not lie so."""
    import numpy as np

    lies_flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(lies_flat).toreadonly()


def name(array: "np.ndarray[Any, Any]") -> str:
    """Name an array by type, shape and content: a text that no JSON value has, for keys of the cache.

    >>> import numpy as np
    >>> name(np.zeros((2, 2), np.float32)) == name(np.zeros((4, 4), np.float32)[::2, ::2])
    True
    >>> name(np.zeros(2, np.float32)) == name(np.zeros(2, np.int32))
    False
    """
    digest = hashlib.blake2b(_buffer(array), digest_size=16).hexdigest()
    return f"@{array.dtype.str}{list(array.shape)}{digest}"


def describe(array: "np.ndarray[Any, Any]") -> str:
    """Say in a few words what an array holds.

    >>> import numpy as np
    >>> describe(np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3))
    'float32 2 x 3, from 0 to 1, mean 0.5'
    """
    import numpy as np

    what = f"{array.dtype} {' x '.join(map(str, array.shape)) or 'scalar'}"
    if array.dtype.kind not in "biuf" or not array.size:
        return what
    finite = array[np.isfinite(array)]
    broken = array.size - finite.size
    lacking = f", {broken} of {array.size} not finite" if broken else ""
    if not finite.size:
        return what + lacking
    low, high, mean = (float(f(finite)) for f in (np.min, np.max, np.mean))
    return f"{what}, from {low:.3g} to {high:.3g}, mean {mean:.3g}{lacking}"


# ---- JSON ----------------------------------------------------------------------------------------------------------


def dump(value: Any) -> str:
    """Write a field as JSON, arrays included; `restore(json.loads(...))` gives back what was written.

    Raises:
        DataError: if it holds something that is neither JSON nor an array of plain numbers.
    """
    try:
        return json.dumps(value, default=_plain)
    except TypeError as error:
        raise DataError(
            f"a field cannot be stored: {error}; keep fields to text, numbers, lists and numpy arrays of numbers"
        ) from None


def _plain(value: Any) -> dict[str, Any]:
    if not is_array(value):
        kind = getattr(value, "dtype", None)
        of = f" of {kind}" if kind is not None else ""
        raise TypeError(f"{type(value).__name__}{of} is no JSON")
    data = base64.b64encode(_buffer(value)).decode("ascii")
    return {MARK: value.dtype.str, "shape": list(value.shape), "data": data}


def restore(value: Any) -> Any:
    """Return parsed JSON with the arrays that `dump` wrote, at any depth.

    Raises:
        ValueError: if an object says that it is an array and is none.
    """
    kind = type(value)
    if kind is dict:
        return _array(value) if MARK in value else {key: restore(inner) for key, inner in value.items()}
    if kind is list and any(type(inner) is dict or type(inner) is list for inner in value):
        return [restore(inner) for inner in value]
    return value


def _array(said: Mapping[str, Any]) -> "np.ndarray[Any, Any]":
    import numpy as np

    if said.keys() != _KEYS:
        raise ValueError(f"an array has the keys {sorted(_KEYS)}, got {sorted(said)}")
    kind, shape, data = said[MARK], said["shape"], said["data"]
    if not (isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)):
        raise ValueError(f"the shape of an array must be a list of sizes, got {shape!r}")
    try:
        found = np.dtype(kind)
        content = base64.b64decode(data, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"an array cannot be read: {error}") from None
    if found.kind not in _PLAIN or not isinstance(kind, str):
        raise ValueError(f"an array holds plain numbers, not {kind!r}")
    if len(content) != math.prod(shape) * found.itemsize:
        raise ValueError(f"an array of {kind} and shape {shape} does not have {len(content)} bytes")
    return np.frombuffer(content, found).reshape(shape).copy()


# ---- the way to a worker -------------------------------------------------------------------------------------------


def hold_arrays(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether any value of these columns is an array."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and any(numpy.ndarray in set(map(type, column)) for column in columns)


def pickled(value: Any) -> bytes:
    """Pickle a value so that equal arrays give equal bytes, however they lie in memory."""
    import numpy as np

    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {np.ndarray: _reduce}
    pickler.dump(value)
    return buffer.getvalue()


def _reduce(array: "np.ndarray[Any, Any]") -> tuple[Any, ...]:
    if not is_array(array):
        return tuple(array.__reduce_ex__(pickle.HIGHEST_PROTOCOL))
    return _rebuild, (array.dtype.str, array.shape, pickle.PickleBuffer(_buffer(array)))


def _rebuild(kind: str, shape: tuple[int, ...], data: bytes) -> "np.ndarray[Any, Any]":
    import numpy as np

    return np.frombuffer(data, kind).reshape(shape).copy()
