"""The parent's side of the nursery: pickle the rewards, start the nursery, ask it for workers and for their end."""

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from concordant.core.errors import RewardError
from concordant.scoring.isolation import isolation
from concordant.scoring.reward import USER, Reward
from concordant.scoring.values import shorten
from concordant.scoring.workers.child import Frames, Worker, frame
from concordant.scoring.workers.nursery import Setting
from concordant.scoring.workers.shared import Shared

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from concordant.scoring.workers.nursery import main; "
    "main(*map(int, sys.argv[2:]))"
)
_HOW = (
    "define it at the top level of a module (a small frozen dataclass with __call__ can hold its parameters), "
    "name it as file.py:name, or declare it @reward(inline=True) to run it in this process without a time limit"
)


def prepare(rewards: Sequence[Reward], memory: int) -> Setting:
    """Pickle the rewards for the workers; one that cannot reach them is refused."""
    if Worker.here:
        raise RewardError(
            "a worker process cannot have workers of its own; in a script that defines a reward, put what starts the "
            "run under `if __name__ == '__main__':`"
        )
    pickled = []
    for reward in rewards:
        try:
            pickled.append(pickle.dumps(reward))
        except Exception as error:  # pickle raises what the object's own methods raise
            raise RewardError(
                f"reward {reward.name!r} cannot be sent to a worker process ({shorten(str(error))}); {_HOW}"
            ) from None
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    modules = {}
    for reward, data in zip(rewards, pickled, strict=True):
        for name, path in files.items():
            if (name == "__main__" or name.startswith(USER)) and name.encode() in data:
                if path is None:
                    raise RewardError(f"reward {reward.name!r} was typed into an interpreter; {_HOW}")
                modules[name] = str(Path(path).resolve())
    return Setting(pickled, [reward.name for reward in rewards], modules, memory, isolation())


class Launcher:
    """A running nursery, and the messages to and from it."""

    def __init__(self, setting: Setting, shared: Shared, log: Path | None) -> None:
        self.channel, theirs = socket.socketpair()
        self.frames, self.tokens = Frames(), 0
        with tempfile.TemporaryFile() as unnamed:
            self.errors = os.fdopen(os.dup(unnamed.fileno()), "rb")
        numbers = (theirs.fileno(), shared.file)
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, open(log or os.devnull, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(sys.path), *map(str, numbers), str(shared.rewards),
                 str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=self.errors, pass_fds=numbers,
                start_new_session=True,
            )  # fmt: skip
        self._ask(setting)

    def _ask(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # that it has ended is found out by reading
            self.channel.sendall(frame(pickle.dumps(message)))

    def start(self, slot: int) -> tuple[int, socket.socket]:
        """Ask for a worker; return its token and the channel to it."""
        ours, theirs = socket.socketpair()
        self.tokens += 1
        message = frame(pickle.dumps({"do": "start", "token": self.tokens, "slot": slot}))
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(self.channel, [message], [theirs.fileno()])
        ours.setblocking(False)
        return self.tokens, ours

    def kill(self, token: int) -> None:
        """Ask for the end of a worker."""
        self._ask({"do": "kill", "token": token})

    def news(self) -> list[tuple[int, int]] | None:
        """Return token and wait status of workers that have ended; None when the nursery itself has."""
        try:
            data = self.channel.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            return None
        told = [json.loads(message) for message in self.frames.feed(data)]
        return [(one["ended"], one["status"]) for one in told] if data else None

    def complaint(self) -> str:
        """What the nursery wrote before it failed: the last line."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return shorten(lines[-1]) if lines else ""

    def close(self) -> None:
        """End the nursery, and with it all workers."""
        self.channel.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()
