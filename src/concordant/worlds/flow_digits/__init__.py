"""The world `flow/digits`: handwritten digits on prompt, drawn by small flow and diffusion networks."""

from concordant.worlds.flow_digits.world import DigitsConfig, DigitsWorld

Config = DigitsConfig
World = DigitsWorld

__all__ = ["Config", "DigitsConfig", "DigitsWorld", "World"]
