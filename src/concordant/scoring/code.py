"""Identity of code: a digest of a function, of everything it reaches, and of the values it was made with.

Two digests are equal only if the code would do the same. What runs is hashed (bytecode and constants), not what a file
says now: a file may have been edited since it was imported, and two lambdas may share a line of source. So comments and
formatting change nothing. Library code counts by the library's version.
"""

import dis
import enum
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import struct
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

_SIMPLE = (type(None), bool, int, float, complex, str, bytes, type(...), range)
_CONTAINERS = (list, tuple, set, frozenset, dict)
_FAITHFUL = (
    "datetime",
    "decimal",
    "fractions",
    "pathlib",
    "uuid",
    "zoneinfo",
    "ipaddress",
    "typing",
    "types",
)
_MACHINERY = ("concordant.scoring", "concordant.core")
_GENERATED = {
    "__dict__", "__weakref__", "__module__", "__doc__", "__dataclass_fields__", "__dataclass_params__",
    "__match_args__", "__annotations__", "__abstractmethods__", "_abc_impl", "__parameters__",
    "__orig_bases__", "__slots__", "__concordant_reward__", "__firstlineno__", "__static_attributes__",
}  # fmt: skip
_BY_DATACLASS = {
    "__init__", "__repr__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__setattr__",
    "__delattr__", "__replace__",
}  # fmt: skip
_MOST = 20_000
_POINTER = struct.calcsize("P")


class Digest:
    """Collects the description of code and values.

    `opaque` lists what cannot be compared between processes, such as an open connection: it is described by its type
    alone, and the caller decides what that means.
    """

    def __init__(self, home: str = "") -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self.home = home.partition(".")[0]
        self.opaque: list[str] = []
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # an id is that of one object only as long as the object lives

    def word(self, *parts: str | bytes) -> None:
        """Add parts, each with its length, so that no two sequences look alike."""
        for part in parts:
            data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            self.hash.update(len(data).to_bytes(8, "little") + data)

    def add(self, value: Any) -> None:
        """Describe a value and what it reaches."""
        if isinstance(value, _SIMPLE) and type(value) in _SIMPLE:
            self.word(type(value).__name__, hex(value) if type(value) is int else repr(value))
            return
        if id(value) in self._seen and type(value) not in (
            tuple,
            frozenset,
        ):  # equal constants may share one, or not
            self.word("again", str(self._seen[id(value)]))
            return
        if len(self._held) >= _MOST:
            self._unknown(value)
            return
        self._seen[id(value)] = len(self._held)
        self._held.append(value)
        for kind, describe in _DESCRIBE:
            if isinstance(value, kind):
                describe(self, value)
                if isinstance(value, _CONTAINERS) and type(value) not in _CONTAINERS:
                    self.add(type(value))
                    self._mapping(getattr(value, "__dict__", {}))
                return
        self._instance(value)

    def file(self, path: str | Path) -> None:
        """Add the content of a file."""
        try:
            self.word("file", Path(path).read_bytes())
        except OSError:
            self.word("no file")

    def siblings(self, namespace: Mapping[str, Any]) -> None:
        """Add the files of the user's own modules that a module's namespace was filled from."""
        here = namespace.get("__name__", "")
        names = {_module_of(value) for value in namespace.values()} - {here, ""}
        for name in sorted(names):
            module = sys.modules.get(name)
            if module is not None and self._own(name):
                self.add(module)

    def _unknown(self, value: Any) -> None:
        self.opaque.append(_name(type(value)))
        self.word("opaque", _name(type(value)))

    def _own(self, name: str) -> bool:
        """Whether a module is the user's code, or of the package that the reward is from."""
        root = name.partition(".")[0]
        if name.startswith(_MACHINERY):
            return False
        if not root or root == self.home:
            return True
        file = getattr(sys.modules.get(name), "__file__", None)
        return root not in sys.stdlib_module_names and not (file and _in_library(str(file)))

    def _library(self, name: str, what: str) -> None:
        root = name.partition(".")[0]
        self.word("library", name, what, _version(root))

    def _many(self, values: Iterable[Any]) -> None:
        held = list(values)
        self.word(type(values).__name__, str(len(held)))
        for value in held:
            self.add(value)

    def _set(self, values: Iterable[Any]) -> None:
        parts = []
        for value in values:
            inner = Digest(self.home)
            inner.add(value)
            self.opaque += inner.opaque
            parts.append(inner.hash.digest())
        self.word("set", *sorted(parts))

    def _mapping(self, values: Mapping[Any, Any]) -> None:
        self.word(type(values).__name__, str(len(values)))
        for key, value in values.items():
            self.add(key)
            self.add(value)

    def _code(self, code: types.CodeType) -> None:
        arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        self.word("code", code.co_name, repr(arguments), code.co_code, code.co_exceptiontable)
        self.word(repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)))
        for index, constant in enumerate(code.co_consts):
            if index or not isinstance(constant, str) or not _is_docstring(code, constant):
                self.add(constant)

    def _function(self, function: types.FunctionType) -> None:
        if not self._own(function.__module__ or ""):
            self._library(function.__module__ or "", function.__qualname__)
            return
        self.word("function", function.__qualname__, ".".join(map(str, sys.version_info[:2])))
        self._code(function.__code__)
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                self.word("empty cell")
        for kind, name in sorted(_globals_of(function.__code__)):
            self.word(kind, name)
            if kind == "import":
                self._import(name, function.__globals__.get("__package__") or "")
            elif name in function.__globals__:
                self.add(function.__globals__[name])

    def _import(self, name: str, package: str) -> None:
        """A module that a function imports when it is called: loaded here or not, it is described alike.

        Of a package of the user's all files count: which ones are imported shows only when it happens.
        """
        spec = _find(name) or _find(package)  # a relative import is named as if its package were on the path
        root = spec.name if spec else ""
        if spec is None or not spec.origin or _in_library(spec.origin) or root == "concordant":
            self._library(name, "")
            return
        folders = spec.submodule_search_locations or ()
        files = sorted(file for folder in folders for file in Path(folder).rglob("*.py"))
        for file in files or [Path(spec.origin)]:
            self.file(file)

    def _module(self, module: types.ModuleType) -> None:
        if not self._own(module.__name__):
            self._library(module.__name__, "")
            return
        self.word("module", module.__name__)
        self.file(getattr(module, "__file__", None) or "")
        self.siblings(vars(module))

    def _class(self, cls: type) -> None:
        if not self._own(cls.__module__):
            self._library(cls.__module__, cls.__qualname__)
            return
        self.word("class", cls.__qualname__)
        for base in cls.__bases__:
            self.add(base)
        for name, value in sorted(vars(cls).items()):
            generated = name in _GENERATED or (
                is_dataclass(cls) and name in _BY_DATACLASS and _from_text(value)
            )
            if not generated and not isinstance(
                value, types.MemberDescriptorType | types.GetSetDescriptorType
            ):
                self.word(name)
                self.add(value)

    def _partial(self, value: Any) -> None:
        self.word("partial")
        self._many((value.func, value.args))
        self._mapping(value.keywords)

    def _method(self, value: Any) -> None:
        self.word("method")
        self._many((value.__func__, value.__self__))

    def _builtin(self, value: Any) -> None:
        owner = getattr(value, "__self__", None)
        self._library(value.__module__ or "", value.__qualname__)
        if owner is not None and not isinstance(owner, types.ModuleType):
            self.add(owner)

    def _wrapper(self, value: Any) -> None:
        """classmethod, staticmethod, property, cached functions: what they wrap."""
        self.word(type(value).__name__)
        for name in ("__func__", "__wrapped__", "fget", "fset", "fdel", "func"):
            inner = getattr(value, name, None)
            if inner is not None:
                self.word(name)
                self.add(inner)

    def _instance(self, value: Any) -> None:
        """A dataclass by its fields, another object by its attributes; what has neither is opaque."""
        cls = type(value)
        if hasattr(value, "tobytes") and hasattr(value, "dtype"):
            self.word(_name(cls), str(value.dtype), repr(getattr(value, "shape", ())))
            self.add(value.tolist()) if value.dtype.hasobject else self.word(value.tobytes())
        elif cls.__module__.partition(".")[0] in _FAITHFUL:
            self.word(_name(cls), repr(value))
        elif cls.__module__ in ("_thread", "logging", "threading"):
            self.word(_name(cls))
        elif is_dataclass(value):
            self.word("dataclass")
            self.add(cls)
            self._mapping({f.name: getattr(value, f.name) for f in fields(value)})
        elif (state := _attributes(value)) is not None:
            self.word("object")
            self.add(cls)
            self._mapping(state)
        else:
            self._unknown(value)


_DESCRIBE: tuple[tuple[Any, Callable[[Digest, Any], None]], ...] = (
    (types.FunctionType, Digest._function),
    (types.MethodType, Digest._method),
    (types.BuiltinFunctionType, Digest._builtin),
    (types.CodeType, Digest._code),
    (types.ModuleType, Digest._module),
    (type, Digest._class),
    (functools.partial, Digest._partial),
    ((classmethod, staticmethod, property, functools.cached_property), Digest._wrapper),
    (type(functools.lru_cache(lambda: None)), Digest._wrapper),
    (enum.Enum, lambda digest, value: digest.word("enum", _name(type(value)), value.name, repr(value.value))),
    (re.Pattern, lambda digest, value: digest.word("pattern", repr(value.pattern), str(value.flags))),
    (logging.Logger, lambda digest, value: digest.word("logger")),
    ((list, tuple), Digest._many),
    ((set, frozenset), Digest._set),
    ((dict, types.MappingProxyType), Digest._mapping),
)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _module_of(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__
    name = getattr(value, "__module__", "")
    return name if isinstance(name, str) else ""


def _from_text(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and value.__code__.co_filename == "<string>"


def _attributes(value: Any) -> dict[str, Any] | None:
    """Attributes of an object, those in slots too; None for one that keeps state elsewhere, as files and clients do."""
    cls = type(value)
    slots = [name for each in cls.__mro__ for name in _slots(each)]
    visible = object.__basicsize__ + _POINTER * (
        len(slots) + 2
    )  # two: the dictionary and the weak references
    if cls.__basicsize__ > visible or cls.__itemsize__:
        return None
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**held, **getattr(value, "__dict__", {})}


def _find(name: str) -> Any:
    try:
        return importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return None


def _slots(cls: type) -> list[str]:
    names = vars(cls).get("__slots__", ())
    names = [names] if isinstance(names, str) else list(names)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _is_docstring(code: types.CodeType, text: str) -> bool:
    """Whether a code object's first constant is only its docstring: no instruction loads it."""
    return all(each.argval is not text for each in dis.get_instructions(code) if each.opname == "LOAD_CONST")


def _globals_of(code: types.CodeType) -> set[tuple[str, str]]:
    """Names that code, and the functions in it, look up in its module or import."""
    found = set()
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.add(("global", each.argval))
        elif each.opname == "IMPORT_NAME":
            found.add(("import", each.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _globals_of(constant)
    return found


@functools.cache
def _in_library(file: str) -> bool:
    """Whether a file is of the standard library or of an installed package."""
    if "site-packages" in file or "dist-packages" in file or not os.path.isabs(file):
        return True
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(os.path.realpath(file).startswith(os.path.realpath(root) + os.sep) for root in roots if root)


@functools.cache
def _version(root: str) -> str:
    """Version of the distribution that is called like a package; empty if none is."""
    if root in sys.stdlib_module_names:
        return ""
    try:
        return importlib.metadata.version(root)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""
