"""What stands for training in the tests of the pool of runs: the first argument says what happens."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(words: list[str]) -> None:
    """Do what an arm's name says."""
    arm, folder = words[0], Path(words[1])
    folder.mkdir(parents=True, exist_ok=True)
    if arm == "raises":
        print("step 1")
        raise ValueError("the loss is NaN")
    if arm == "exits":
        sys.exit(2)
    if arm == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if arm == "slow":
        (folder / "pid.tmp").write_text(str(os.getpid()))
        (folder / "pid.tmp").rename(folder / "pid")
        time.sleep(60)
    if arm != "silent":
        summary = {"n": os.environ["OMP_NUM_THREADS"]} if arm == "threads" else {"metrics": {"a": 1}}
        (folder / "summary.json").write_text(json.dumps(summary))
