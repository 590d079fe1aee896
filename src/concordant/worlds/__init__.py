"""Worlds: small real settings with tasks, a base policy, oracle metrics and failure meters."""

from concordant.worlds.base import Task, World, get, names

__all__ = ["Task", "World", "get", "names"]
