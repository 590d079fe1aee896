"""The examples in the docstrings and on the page of the built-in rewards are run."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import concordant.rewards

MODULES = sorted(
    info.name for info in pkgutil.walk_packages(concordant.rewards.__path__, "concordant.rewards.")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_page():
    page = Path(__file__).parents[2] / "docs" / "rewards.md"
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0 and found.attempted > 5


def test_every_public_name_is_documented_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    assert [name for name in concordant.rewards.__all__ if f"`{name}" not in page] == []
