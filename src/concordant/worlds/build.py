"""Make the world and the policy of an experiment."""

from typing import Any

from concordant.core.recipe import Experiment
from concordant.scoring import as_reward
from concordant.worlds import base, user


def make_world(experiment: Experiment) -> Any:
    """Build an embedded world by name, or the user's own from data, model and rewards."""
    if experiment.world != "user":
        return base.get(experiment.world, experiment.world_options)
    options = {key: value for key, value in experiment.world_options.items() if key != "revision"}
    functions = {as_reward(r).name: as_reward(r).function for r in experiment.arm.rewards}
    return user.UserWorld(user.UserConfig(**options), experiment.policy.model or "", functions)


def make_policy(experiment: Experiment, world: Any) -> Any:
    """Load the world's policy on the device and with the adapters that the experiment asks for."""
    from concordant.policies.lm import LoraOptions

    options = experiment.policy
    lora = LoraOptions(rank=options.lora_rank, alpha=options.lora_alpha) if options.lora_rank else None
    return world.policy(device=options.device, dtype=options.dtype, lora=lora)
