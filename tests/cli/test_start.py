"""Starting up: quick, light, and helpful."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("list", "show", "run", "compare", "board", "explain", "report")


def python(*words):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True, timeout=60, check=True
    )


def test_help_answers_within_four_tenths_of_a_second():
    def spent():  # processor time: other work on the machine is not the program's
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(7):
        before = spent()
        assert "compare" in python("-m", "concordant", "--help").stdout
        times.append(spent() - before)
    assert min(times) < 0.4


@pytest.mark.parametrize("what", ["import concordant", "import concordant.cli.app"])
def test_starting_imports_nothing_heavy(what):
    heavy = ("torch", "numpy", "scipy", "transformers", "matplotlib", "jinja2", "pyarrow", "pydantic")
    loaded = python("-c", f"{what}; import sys, json; print(json.dumps([*sys.modules]))").stdout
    assert not set(json.loads(loaded)) & set(heavy)


def test_names_are_there_when_they_are_used():
    import concordant
    from concordant.core.chain import chain

    assert concordant.chain is chain
    assert concordant.recipes.slugs()
    assert callable(concordant.compare)
    assert set(concordant.__all__) == set(dir(concordant))
    for name in concordant.__all__:
        assert getattr(concordant, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'chian'"):
        concordant.chian  # noqa: B018


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(call, verb):
    shown = call(verb, "--help")
    assert shown.exit_code == 0
    assert "--json" in shown.output


def test_the_version(call):
    import concordant

    assert call("--version").output.strip() == concordant.__version__
