"""Make the world, the rewards and the policy of an experiment."""

from dataclasses import replace
from typing import Any

from concordant.core.errors import ConfigError, nearest
from concordant.core.recipe import Experiment
from concordant.scoring.reward import Reward, as_reward, declared
from concordant.worlds import base, user


def make_world(experiment: Experiment) -> Any:
    """Build an embedded world by name, or the user's own from data, model and rewards."""
    if experiment.world != "user":
        return base.get(experiment.world, experiment.world_options)
    options = {key: value for key, value in experiment.world_options.items() if key != "revision"}
    own = {as_reward(function).name: as_reward(function) for function in experiment.arm.rewards}
    return user.UserWorld(user.UserConfig(**options), experiment.policy.model or "", own)


def make_rewards(experiment: Experiment, world: Any) -> list[Reward]:
    """Return the rewards of the arm as the engine should run them.

    A reward named by a text is the world's: trusted and cheap, it runs here unless it was declared otherwise.
    Functions are the user's and run in workers. Options of the experiment go before those of the rewards.
    """
    made = []
    for given in experiment.arm.rewards:
        if isinstance(given, str):
            if given not in world.rewards:
                raise ConfigError(
                    f"world {world.name!r} has no reward {given!r}; {nearest(given, world.rewards)}"
                )
            function = world.rewards[given]
            made.append(as_reward(function, given, **{"inline": True, **declared(function)}))
        else:
            made.append(as_reward(given))
    options = {key: value for key in ("timeout", "missing") if (value := getattr(experiment.scoring, key))}
    return [replace(reward, **options) for reward in made] if options else made


def make_policy(experiment: Experiment, world: Any) -> Any:
    """Load the world's policy on the device and with the adapters that the experiment asks for."""
    from concordant.policies.lm import LoraOptions

    options = experiment.policy
    lora = LoraOptions(rank=options.lora_rank, alpha=options.lora_alpha) if options.lora_rank else None
    return world.policy(device=options.device, dtype=options.dtype, lora=lora)
