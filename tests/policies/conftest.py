from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from concordant.policies import LMPolicy
from concordant.worlds.base import Task
from tests.policies.models import make_model

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple, Path] = {}

    def get(family: str = "Qwen3", **options: object) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp("model") / family, family, **options)
        return made[key]

    return get


@pytest.fixture
def policy_of(folder_of: Callable[..., Path]) -> Callable[..., LMPolicy]:
    return lambda family="Qwen3", **options: LMPolicy.from_pretrained(folder_of(family, **options))


@pytest.fixture
def policy(policy_of: Callable[..., LMPolicy]) -> LMPolicy:
    return policy_of()


@pytest.fixture
def tasks() -> list[Task]:
    """Prompts of unequal length, two of which begin alike, and one twice."""
    prompts = ["1+2=?", "12+345+67=?", "7", "12+345+68=?", "7"]
    return [Task(10 + i, prompt, {"answer": str(i)}) for i, prompt in enumerate(prompts)]
