"""The content hash: stable, and sensitive to what the numbers depend on."""

import dataclasses
import os
import subprocess
import sys

import pytest

from concordant import recipes
from concordant.comparison import revision as module
from concordant.comparison.revision import reached, revision


def names(recipe):
    return {part.__qualname__ for part in reached(recipe.arms)}


def test_it_reaches_kernels_their_helpers_and_the_objective():
    found = names(recipes.get("gdpo"))
    assert {"group_zscore", "weighted_sum", "batch_zscore", "spread", "PolicyGradient", "clip_term"} <= found


def test_it_leaves_out_kernels_that_are_not_used():
    assert "group_loo" not in names(recipes.get("gdpo"))


def test_it_is_the_same_in_every_process():
    code = (
        "from concordant import recipes; from concordant.comparison.revision import revision; "
        "print(revision(recipes.get('gdpo')))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {revision(recipes.get("gdpo"))}


def test_it_changes_with_a_kernel(monkeypatch):
    recipe = recipes.get("gdpo")
    before = revision(recipe)
    source = module._source
    monkeypatch.setattr(
        module,
        "_source",
        lambda part: source(part) + ("#" if getattr(part, "__name__", "") == "spread" else ""),
    )
    assert revision(recipe) != before


def test_it_changes_with_an_option_but_not_with_a_note():
    recipe = recipes.get("gdpo")
    method = recipe.arm()
    other = dataclasses.replace(method, chain=method.chain.set("z", eps=1e-3))
    noted = dataclasses.replace(method, note="a remark")
    assert revision(dataclasses.replace(recipe, arms={**recipe.arms, "gdpo": other})) != revision(recipe)
    assert revision(dataclasses.replace(recipe, arms={**recipe.arms, "gdpo": noted})) == revision(recipe)


@pytest.mark.parametrize("slug", recipes.slugs())
def test_every_recipe_has_one(slug):
    assert len(revision(recipes.get(slug))) == 12
