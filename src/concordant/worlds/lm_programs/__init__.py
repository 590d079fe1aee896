"""The world `lm/programs`: short programs from examples, judged by really executing them on tests that were not
shown.
"""

from concordant.worlds.lm_programs.world import ProgramsConfig, ProgramsWorld

Config = ProgramsConfig
World = ProgramsWorld

__all__ = ["Config", "ProgramsConfig", "ProgramsWorld", "World"]
