"""The commands of the README and the guides are extracted and run (at smoke scale); generated pages are current."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from concordant import recipes

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(path):
    lines = [line for block in blocks(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("concordant ")]


def at_smoke_scale(words):
    """Append what makes a command short; the last of two equal options counts."""
    if words[1] not in ("run", "compare"):
        return words[1:]
    recipe = recipes.get(words[2])
    if words[1] == "compare":
        return [
            *words[1:],
            "--profile",
            "smoke",
            "--arms",
            f"{recipe.slug},{recipe.baseline}",
            "--seeds",
            "0",
        ]
    shorter = [] if recipe.world.startswith("flow/") else ["--set", "train.max_new_tokens=24"]
    return [*words[1:], "--profile", "smoke", *shorter]


@pytest.fixture
def workplace(own, tmp_path, monkeypatch):
    """A folder that has what the guides speak of."""
    for each in own.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_shows_every_verb():
    shown = {words[1] for words in commands(ROOT / "README.md")}
    assert shown == {"list", "show", "run", "compare", "board", "score", "explain", "report"}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in GUIDES if commands(path)], ids=lambda path: path.name)
def test_the_commands_run(call, workplace, path):
    asked = commands(path)
    own = any("--model" in words for words in asked)
    for words in asked:
        if own and "--model" not in words and words[1] in ("compare", "run"):
            own = False  # from here on the guide speaks of the shipped world: its runs go to a clean place
            (workplace / "runs").rename(workplace / "own-runs")
        ended = call(*at_smoke_scale(words))
        assert ended.exit_code == 0, f"{shlex.join(words)}\n{ended.output}"


@pytest.mark.slow
def test_the_python_of_the_readme_runs(workplace):
    names: dict[str, object] = {}
    for block in blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["result"]["claims"][0]["verdict"] == "unjudged"


def test_links_lead_somewhere():
    for path in (*GUIDES, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_generated_pages_are_current():
    words = [sys.executable, str(ROOT / "scripts" / "make_docs.py"), "--check"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_pages_that_are_not_current_are_named_and_written(tmp_path):
    words = [sys.executable, str(ROOT / "scripts" / "make_docs.py"), "--docs", str(tmp_path)]
    assert subprocess.run([*words, "--check"], check=False, capture_output=True).returncode == 1
    subprocess.run(words, check=True, capture_output=True)
    (tmp_path / "systems" / "gdpo.md").write_text("old")
    (tmp_path / "systems" / "gone.md").write_text("a recipe that is no more")
    ended = subprocess.run([*words, "--check"], check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "systems/gdpo.md, systems/gone.md" in ended.stderr
    subprocess.run(words, check=True, capture_output=True)
    assert not (tmp_path / "systems" / "gone.md").exists()
    assert subprocess.run([*words, "--check"], check=False).returncode == 0
