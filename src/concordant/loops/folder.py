"""The run folder and the configuration it belongs to."""

import json
import shutil
from pathlib import Path
from typing import Any

from concordant.core.config import plain
from concordant.core.errors import CheckpointError
from concordant.core.recipe import Experiment
from concordant.loops import checkpoint


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Return the whole configuration of a run as plain data, with the source of every value that is no default."""
    return plain(experiment)


def prepare_folder(folder: Path, experiment: Experiment, fresh: bool) -> None:
    """Make the run folder, or accept one that holds the same configuration."""
    config = folder / "config.json"
    text = json.dumps(resolved(experiment), indent=1)
    if fresh and folder.exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config.exists() and config.read_text() != text:
            raise CheckpointError(
                f"{folder} holds a run with another configuration; use --fresh to replace it, or another --out"
            )
        checkpoint.write_atomically(config, text.encode())
    except OSError as error:
        raise CheckpointError(
            f"cannot write to the run folder {folder}: {error.strerror}; choose another --out"
        ) from None
