"""Keys and the cache: what changes a result changes its name, and what is stored comes back as it was."""

import functools
import json
import math
import re
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concordant.core.errors import DataError
from concordant.scoring.cache import VERSION, Cache
from concordant.scoring.keys import fingerprint, key, lasting, row_keys
from concordant.scoring.outcome import Outcome
from concordant.scoring.reward import Context, Reward, as_reward, load_reward

PATTERN = re.compile(r"\d+")
LIMIT = 3


def helper(text):
    return len(text) > LIMIT


def judged(completion):
    """Says something."""
    return float(helper(completion) and bool(PATTERN.search(completion)))


@dataclass(frozen=True)
class AtMost:
    """A reward with a parameter."""

    words: int = 3

    def __call__(self, completion):
        return float(len(completion.split()) <= self.words)


class Plain:
    def __init__(self, words):
        self.words = words

    def __call__(self, completion):
        return float(len(completion.split()) <= self.words)


def name_of(function, **options):
    return fingerprint(as_reward(function, name="x", **options))


# --- fingerprints -------------------------------------------------------------------------------------------


def written(folder, text, helpers="def scale(x): return 2 * x\n", file="mine.py"):
    (folder / "helpers.py").write_text(helpers)
    (folder / file).write_text(textwrap.dedent(text))
    sys.modules.pop("helpers", None)
    try:
        return fingerprint(load_reward(f"{folder / file}:score"))
    finally:
        sys.modules.pop("helpers", None)


BASE = """
from helpers import scale

WEIGHT = 1.0

def length(text):
    return len(text)

def score(completion):
    return scale(length(completion)) * WEIGHT
"""


@pytest.mark.parametrize(
    ("changed", "helpers"),
    [
        (BASE.replace("* WEIGHT", "* WEIGHT + 1"), None),
        (BASE.replace("len(text)", "len(text) + 1"), None),
        (BASE.replace("WEIGHT = 1.0", "WEIGHT = 2.0"), None),
        (BASE, "def scale(x): return 3 * x\n"),
    ],
    ids=["function", "helper in the file", "constant in the file", "helper in a file beside it"],
)
def test_the_fingerprint_of_a_file_changes_with_its_code(tmp_path, changed, helpers):
    before = written(tmp_path, BASE)
    assert written(tmp_path, BASE) == before
    assert written(tmp_path, changed, *([helpers] if helpers else [])) != before


def test_the_fingerprint_does_not_change_with_an_unrelated_file_or_the_folder(tmp_path):
    before = written(tmp_path, BASE)
    (tmp_path / "other.py").write_text("raise SystemExit")
    assert written(tmp_path, BASE) == before
    (tmp_path / "moved").mkdir()
    assert written(tmp_path / "moved", BASE) == before


def test_a_sibling_that_is_imported_inside_the_function_counts(tmp_path):
    text = "def score(completion):\n    import helpers_of_mine\n    return helpers_of_mine.scale(len(completion))\n"
    sys.path.insert(0, str(tmp_path))
    try:
        (tmp_path / "helpers_of_mine.py").write_text("def scale(x): return x\n")
        before = written(tmp_path, text)
        (tmp_path / "helpers_of_mine.py").write_text("def scale(x): return -x\n")
        assert written(tmp_path, text) != before
    finally:
        sys.path.remove(str(tmp_path))


def test_what_a_function_reaches_counts(monkeypatch):
    before = name_of(judged)
    assert name_of(judged) == before
    for name, value in [
        ("LIMIT", 4),
        ("PATTERN", re.compile(r"\d*")),
        ("helper", lambda text: len(text) >= LIMIT),
    ]:
        with monkeypatch.context() as patch:
            patch.setitem(globals(), name, value)
            assert name_of(judged) != before, name
    assert name_of(judged) == before


def test_parameters_count_and_equal_ones_are_equal():
    for kind in (AtMost, Plain):
        assert name_of(kind(3)) == name_of(kind(3))
        assert name_of(kind(3)) != name_of(kind(4))
    assert name_of(functools.partial(judged)) != name_of(functools.partial(judged, completion="a"))

    def made(bound):
        return lambda completion: float(len(completion) < bound)

    assert name_of(made(3)) == name_of(made(3))
    assert name_of(made(3)) != name_of(made(4))


def test_two_lambdas_on_a_line_are_two():
    a, b = (lambda completion: 1.0), (lambda completion: 2.0)
    assert name_of(a) != name_of(b)


def test_the_docstring_is_not_code():
    def one(completion):
        """One."""
        return "a"

    def two(completion):
        """Two."""
        return "a"

    def three(completion):
        """Two."""
        return "b"

    for function in (two, three):
        function.__name__ = function.__qualname__ = "one"
        function.__code__ = function.__code__.replace(co_name="one")
    one.__qualname__ = "one"
    assert name_of(one) == name_of(two) != name_of(three)


def test_options_that_change_results_count_and_others_do_not():
    before = name_of(judged)
    assert name_of(judged, version="judge-2") != before
    assert name_of(judged, level="group") != before
    assert name_of(judged, timeout=1, retries=0, rate=3, missing="fail") == before
    assert fingerprint(as_reward(judged, name="other")) == before


def test_code_without_a_source_has_a_fingerprint():
    def compiled(text):
        space = {"__name__": "typed_in"}
        exec(text, space)
        return name_of(space["f"])

    one = compiled("def g(x): return x\ndef f(completion): return g(1.0)")
    assert one == compiled("def g(x): return x\ndef f(completion): return g(1.0)")
    assert one != compiled("def g(x): return -x\ndef f(completion): return g(1.0)")
    assert one != compiled("def g(x): return x\ndef f(completion): return g(2.0)")


def test_what_cannot_be_compared_is_valid_in_this_process_only(tmp_path):
    class Holds:
        def __init__(self):
            self.opened = (tmp_path / "x").open("w")

        def __call__(self, completion):
            return 1.0

    with (held := Holds()).opened:
        assert not lasting(as_reward(held))
        assert lasting(as_reward(held, version="1"))
    assert lasting(as_reward(judged))


def test_the_fingerprint_is_the_same_in_every_process(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import math\nNAMES = {'a', 'b', 'c', 'dd'}\nPAIR = (1, (2, 3))\ndef other(): return (2, 3), PAIR, 10**5000\n"
        "def score(completion):\n    import json\n    other()\n"
        "    return float(completion in NAMES and (2, 3) == PAIR[1]) * math.pi\n"
    )
    program = (
        "import sys\nfrom concordant.scoring.keys import fingerprint\n"
        "from concordant.scoring.reward import as_reward, load_reward\n"
        "found = load_reward(sys.argv[1])\nfor each in (found, as_reward(found.function)):\n"
        "    print(fingerprint(each).hex())"
    )
    words = [sys.executable, "-c", program, f"{tmp_path / 'mine.py'}:score"]
    texts = {
        subprocess.run(
            words, env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in range(3)
    }  # fmt: skip
    assert len(texts) == 1


# --- keys ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CODE = bytes(16)


def strict(value):
    """A text by which JSON values are equal if and only if they are of equal types and contents."""
    return json.dumps(value, sort_keys=True)


@given(JSON, JSON)
def test_keys_are_equal_if_and_only_if_the_inputs_are(a, b):
    same = key(CODE, {"x": a}) == key(CODE, {"x": b})
    assert same == (strict(a) == strict(b))


@given(st.lists(st.tuples(JSON, st.text()), min_size=1, max_size=5))
def test_many_keys_at_once_are_the_same_keys(rows):
    fields = {"b %s": [row[0] for row in rows], "a": [row[1] for row in rows]}
    one_by_one = [key(CODE, {name: values[i] for name, values in fields.items()}) for i in range(len(rows))]
    assert row_keys(CODE, fields) == one_by_one
    seeds = list(range(len(rows)))
    assert row_keys(CODE, fields, seeds) == [
        key(CODE, {name: values[i] for name, values in fields.items()}, i) for i in seeds
    ]


def test_a_key_depends_on_code_names_and_context():
    context = Context(step=1, total=10, seed=5)
    keys = {
        key(CODE, {"x": 1}), key(b"1" * 16, {"x": 1}), key(CODE, {"y": 1}), key(CODE, {"x": 1}, 5),
        key(CODE, {"x": 1}, context), key(CODE, {"x": 1}, Context(step=2, total=10, seed=5)),
    }  # fmt: skip
    assert len(keys) == 6
    assert all(len(each) == 16 for each in keys)


def test_the_order_of_fields_does_not_matter():
    assert key(CODE, {"x": 1, "y": {"b": 1, "a": 2}}) == key(CODE, {"y": {"a": 2, "b": 1}, "x": 1})


@pytest.mark.parametrize(
    "value",
    [object(), (1, 2), {1: "a"}, {"a": b""}, {1.5}, 10**5000, [[1, {2}]]],
    ids=lambda v: type(v).__name__,
)
def test_what_is_no_json_has_no_key(value):
    assert key(CODE, {"x": value}) is None
    assert row_keys(CODE, {"x": ["a", value]}) == [key(CODE, {"x": "a"}), None]


def test_half_a_character_has_a_key():
    assert key(CODE, {"x": "\ud800"}) != key(CODE, {"x": "\udc00"})


# --- the store ----------------------------------------------------------------------------------------------

KEPT = {
    "number": Outcome(0.1 + 0.2, seconds=1.5, attempts=2),
    "zero": Outcome(0.0),
    "tiny": Outcome(5e-324),
    "several": Outcome((1.0, math.nan, -2.5)),
    "verdict": Outcome(
        1.0, "", 0.75, "judge", {"votes": [1, 0, None], "text": 'a "b" \u00e9'}, sandbox="bubblewrap"
    ),
    "none": Outcome(None, "returned None"),
    "abstained": Outcome(None, "abstained: no majority", kind="judge", detail={"reason": "no majority"}),
}
NOT_KEPT = [
    "timed out after 2 s", "killed: worker ended by signal SIGSEGV", "worker exited with code 3", "returned nan",
    "raised ConnectionError: refused", "raised ZeroDivisionError: division by zero", "returned str, not a number",
]  # fmt: skip


def key_of(name):
    return key(CODE, {"x": name})


def test_every_kind_of_outcome_comes_back_as_it_was(tmp_path):
    with Cache(tmp_path / "c.db") as cache:
        assert cache.put_many([(key_of(name), outcome) for name, outcome in KEPT.items()]) == len(KEPT)
    with Cache(tmp_path / "c.db") as cache:
        assert len(cache) == len(KEPT)
        found = cache.get_many([key_of(name) for name in (*KEPT, "absent")])
    assert set(found) == {key_of(name) for name in KEPT}
    for name, outcome in KEPT.items():
        got = found[key_of(name)]
        assert repr(got.value) == repr(outcome.value)
        assert (got.reason, got.confidence, got.kind, dict(got.detail), got.sandbox) == (
            outcome.reason, outcome.confidence, outcome.kind, dict(outcome.detail), outcome.sandbox,
        )  # fmt: skip
        assert (got.cached, got.attempts, got.seconds) == (True, 0, 0.0)


def test_failures_are_never_kept(tmp_path):
    with Cache(tmp_path / "c.db") as cache:
        assert cache.put_many([(key_of(reason), Outcome(None, reason)) for reason in NOT_KEPT]) == 0
        assert cache.put_many([(key_of("x"), Outcome(1.0, detail={"a": object()}))]) == 0
        assert len(cache) == 0


def test_the_first_outcome_stays(tmp_path):
    with Cache(tmp_path / "c.db") as cache:
        cache.put_many([(key_of("x"), Outcome(1.0))])
        cache.put_many([(key_of("x"), Outcome(2.0)), (key_of("y"), Outcome(3.0))])
        assert cache.get_many([key_of("x")])[key_of("x")].value == 1.0
        assert cache.get_many([key_of("y")])[key_of("y")].value == 3.0


def test_more_keys_than_a_statement_takes(tmp_path):
    keys = [key(CODE, {"x": i}) for i in range(40_000)]
    with Cache(tmp_path / "c.db") as cache:
        cache.put_many((each, Outcome(float(i))) for i, each in enumerate(keys))
        found = cache.get_many([*keys, *keys])
        assert [found[each].value for each in keys] == list(map(float, range(40_000)))


WRITER = """
import sys
from concordant.scoring.cache import Cache
from concordant.scoring.keys import key
from concordant.scoring.outcome import Outcome

path, who = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
with Cache(path) as cache:
    for batch in range(40):
        rows = [batch * 50 + i for i in range(50)]
        own = [(key(b"own%d" % who, {"x": row}), Outcome(float(row))) for row in rows]
        shared = [(key(b"shared", {"x": row}), Outcome(float(who))) for row in rows]
        cache.put_many(own + shared)
        found = cache.get_many([k for k, _ in own + shared])
        assert len(found) == 100, len(found)
        assert all(found[k].value == o.value for k, o in own)
print("done")
"""


def test_processes_share_a_file(tmp_path):
    """Four processes make the file, write and read at the same time: nothing is lost, nobody fails."""
    path = tmp_path / "c.db"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(who)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for who in range(4)
    ]  # fmt: skip
    for each in started:
        assert each.stdout.readline() == "ready\n"
    for each in started:
        each.stdin.write("\n")
        each.stdin.flush()
    for each in started:
        out, err = each.communicate(timeout=120)
        assert (each.returncode, out) == (0, "done\n"), err
    with Cache(path) as cache:
        assert len(cache) == 4 * 2000 + 2000
        shared = cache.get_many([key(b"shared", {"x": row}) for row in range(2000)])
        assert {outcome.value for outcome in shared.values()} <= {0.0, 1.0, 2.0, 3.0}


def test_a_process_that_is_killed_loses_nothing_it_had_stored(tmp_path):
    program = WRITER.replace('print("done")', "import os, signal; os.kill(os.getpid(), signal.SIGKILL)").replace(
        "with Cache(path) as cache:", "cache = Cache(path)\nif cache:"
    ).replace("if cache:", "if cache is not None:")  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "c.db"), "0"], input="\n", text=True, check=False
    )
    assert ended.returncode == -9
    with Cache(tmp_path / "c.db") as cache:
        assert len(cache) == 4000


def other_program(path):
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE thesis (chapter TEXT)")
    made.close()


def other_version(path):
    Cache(path).close()
    with sqlite3.connect(path) as made:
        made.execute(f"PRAGMA user_version = {VERSION + 1}")
    made.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("years of work, and longer than a header"), "not an SQLite file"),
        (other_program, "another program"),
        (other_version, f"version {VERSION + 1}"),
        (lambda path: path.mkdir(), "cannot open"),
    ],
    ids=["text", "another program's", "another version's", "folder"],
)
def test_a_file_that_is_no_cache_is_refused_and_left_as_it_is(tmp_path, make, message):
    path = tmp_path / "c.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(DataError, match=message):
        Cache(path)
    if before is not None:
        assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["c.db"]


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "c.db"
    with Cache(path) as cache:
        cache.put_many([(key(CODE, {"x": i}), Outcome(float(i))) for i in range(5000)])
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"c\.db.*(damaged|malformed)"), Cache(path) as cache:
        cache.get_many([key(CODE, {"x": i}) for i in range(5000)])


def test_there_must_be_a_folder(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        Cache(tmp_path / "nowhere" / "c.db")


def test_closing_twice_is_allowed(tmp_path):
    cache = Cache(tmp_path / "c.db")
    cache.close()
    cache.close()


def test_reward_objects_are_hashed_by_what_they_hold():
    assert fingerprint(Reward("a", AtMost(1))) != fingerprint(Reward("a", AtMost(2)))


def test_text_with_a_class_of_its_own_is_not_taken_for_any_other():
    class Words(str):
        pass

    assert not lasting(as_reward(functools.partial(judged, completion=Words("a")), name="x"))


def test_a_relative_import_inside_the_function_counts(tmp_path):
    package = tmp_path / "mine_of_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text(
        "def score(completion):\n    from .near import f\n    return f(completion)\n"
    )
    program = (
        "from concordant.scoring.keys import fingerprint\nfrom concordant.scoring.reward import as_reward\n"
        "from mine_of_package.main import score\nprint(fingerprint(as_reward(score)).hex())"
    )

    def name():
        env = {"PYTHONPATH": ":".join([str(tmp_path), *sys.path])}
        words = [sys.executable, "-c", program]
        return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout

    (package / "near.py").write_text("def f(x): return 1.0\n")
    before = name()
    assert name() == before
    (package / "near.py").write_text("def f(x): return 2.0\n")
    assert name() != before
