"""The world `flow/ring2d`: eight Gaussians on a ring, whose flow is known in closed form."""

from concordant.worlds.flow_ring2d.velocity import RingVelocity, exact_velocity
from concordant.worlds.flow_ring2d.world import RingConfig, RingWorld

Config = RingConfig
World = RingWorld

__all__ = ["Config", "RingConfig", "RingVelocity", "RingWorld", "World", "exact_velocity"]
