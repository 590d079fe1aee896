"""Bring your own pipeline of diffusers: recognised by its folder, trained by a flow recipe from the command line."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed")

from safetensors.torch import load_file
from typer.testing import CliRunner

from concordant.core.errors import ConfigError
from concordant.experiment import build
from concordant.worlds.user import UserConfig, UserWorld
from tests.tiny_pipelines import make_sd3

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "generators.md").read_text(encoding="utf-8")
SMALL = (
    "world.size=[16,24]", "world.max_sequence_length=16", "policy.device=cpu",
    "sampler.steps=3", "train.prompts=2", "train.group_size=3", "train.eval_prompts=1", "train.lr=1e-3",
)  # fmt: skip


def block(language: str, words: str) -> str:
    """The block of the guide that holds these words."""
    found = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.M | re.S)
    return next(text for text in found if words in text)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    make_sd3(folder / "my-sd3")
    lines = [json.dumps({"prompt": f"a cat in room {i}"}) for i in range(5)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "my_image_rewards.py").write_text(block("python", "def red"))
    return folder


def test_the_command_of_the_guide_trains_adapters_that_train_further(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concordant.cli.app import app

    def run(words: list[str], *sets: str) -> dict[str, Any]:
        given = [word for text in sets for word in ("--set", text)]
        ended = CliRunner().invoke(app, [*words, *given, "--profile", "smoke", "--json"])
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    for part in own.iterdir():
        (tmp_path / part.name).symlink_to(part)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(block("sh", "concordant run flow-grpo --model").replace("\\\n", " "))[1:]
    summary = run(words, *SMALL)
    assert summary["metrics"].keys() == {"reward/red"}
    policy = Path("runs/flow-grpo/flow-grpo/seed0/policy")
    weights = load_file(policy / "adapter_model.safetensors")
    assert sum(bool(value.abs().max() > 0) for name, value in weights.items() if "lora_B" in name) > 5
    words[words.index("my-sd3")] = str(policy)
    further = [*words, "--out", "further"]
    assert run(further, *SMALL, "policy.lora_rank=0", "train.steps=1")["metrics"].keys() == {"reward/red"}


def test_images_and_text_are_told_apart(own: Path, tmp_path: Path) -> None:
    data = own / "prompts.jsonl"
    world = UserWorld(UserConfig(str(data), size=(16, 24)), str(own / "my-sd3"))
    assert (world.modality, world.columns) == ("image", {})
    text = UserWorld(UserConfig(str(data)), str(tmp_path))
    assert (text.modality, text.columns) == ("text", {"answer_id": "b"})
    for option in ({"size": (16, 24)}, {"guidance": 2.0}, {"max_sequence_length": 8}, {"recompute": 4}):
        with pytest.raises(ConfigError, match=f"world.{next(iter(option))} is for pipelines of images"):
            UserWorld(UserConfig(str(data), **option), "owner/language-model")
    own_parts = {
        "model": str(own / "my-sd3"),
        "data": data,
        "rewards": (f"{own / 'my_image_rewards.py'}:red",),
    }
    with pytest.raises(ConfigError, match=r"world.size must be height and width in pixels, .* got 512"):
        build("flow-grpo", sets=["world.size=512"], **own_parts)
    with pytest.raises(ConfigError, match="has no meaning in world 'user'"):
        build("flow-grpo", sets=["train.temperature=0.5"], **own_parts)
