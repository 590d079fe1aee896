"""What a result was measured with."""

import importlib.metadata
import platform

PACKAGES = ("concordant", "torch", "transformers", "tokenizers", "numpy", "reasoning-gym", "safetensors")


def versions() -> dict[str, str]:
    """Return versions of Python and of the packages that can move a number, and the kind of machine."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "machine": platform.machine(), "system": platform.system()}
