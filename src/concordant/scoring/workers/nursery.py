"""The process that starts workers, ends them with everything they started, and says how they ended.

It imports what workers need once and forks them, so that a fresh worker is there in milliseconds; it runs no reward
itself. Nothing of it is inherited from the user's script, which needs no `if __name__ == "__main__"`.
"""

import contextlib
import ctypes
import gc
import json
import os
import pickle
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from concordant.scoring.isolation import Level, set_isolation
from concordant.scoring.reward import USER, load_module
from concordant.scoring.values import shorten
from concordant.scoring.workers.child import Frames, Worker, frame
from concordant.scoring.workers.shared import Shared

_DEATH_SIGNAL, _SUBREAPER = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
_LAST = 5.0
"""Seconds in which everything must have ended that was killed."""
_WATCH = 1.0
"""Seconds between two looks at whether the parent is alive, in case that a fork of it keeps the channel open."""


class Setting(NamedTuple):
    """What all workers have in common."""

    rewards: list[bytes]
    """Pickled."""
    names: list[str]
    modules: dict[str, str]
    """Files of the modules that were loaded from a path, and of `__main__`."""
    memory: int
    """Limit on a worker's address space, in MB; 0 is none."""
    isolation: Level
    """Of sandboxes, as the user chose it."""


def _prctl(option: int, value: int) -> None:
    """Ask Linux; other systems have no such thing, and clean up less."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Nursery:
    """The loop: requests of the parent on one side, ends of workers on the other."""

    def __init__(self, channel: socket.socket, shared: Shared, parent: int) -> None:
        self.channel, self.shared, self.parent = channel, shared, parent
        self.workers: dict[int, int] = {}  # process id -> token of the parent
        self.frames = Frames()
        self.files: list[int] = []
        self.setting: Setting | None = None

    def say(self, message: dict[str, Any]) -> None:
        """Tell the parent."""
        self.channel.sendall(frame(json.dumps(message).encode()))

    def serve(self) -> None:
        """Serve until the parent is gone; then end all workers."""
        _prctl(_SUBREAPER, 1)
        wake, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGCHLD, lambda number, stack: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while os.getppid() == self.parent:
                ready = select.select([self.channel.fileno(), wake], [], [], _WATCH)[0]
                if wake in ready:
                    os.read(wake, 4096)
                    self.reap()
                if self.channel.fileno() in ready and not self.listen():
                    return
        except ConnectionError:
            return
        finally:
            self.end_all()

    def listen(self) -> bool:
        """Read requests; False when the parent has gone."""
        data, files, _, _ = socket.recv_fds(self.channel, 1 << 18, 16)
        for file in files:
            os.set_inheritable(file, False)
        self.files += files
        for message in self.frames.feed(data):
            request = pickle.loads(message)
            if isinstance(request, Setting):
                self.setting = request
            elif request["do"] == "start":
                self.start(request["token"], request["slot"], self.files.pop(0))
            else:
                self.kill(request["token"])
        return bool(data)

    def start(self, token: int, slot: int, file: int) -> None:
        """Fork a worker that speaks on `file`."""
        gc.freeze()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                self.become_worker(slot, file)
                code = 0
            finally:
                os._exit(code)
        os.close(file)
        self.workers[process] = token

    def become_worker(self, slot: int, file: int) -> None:
        """Be a worker until the parent has no more work."""
        nursery = os.getppid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.channel.close()
        os.dup2(1, 2)  # what rewards print goes to the log, or nowhere
        os.setsid()
        _prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != nursery or self.setting is None:
            return
        _be_expendable(self.setting.memory)
        Worker.here = True
        worker = Worker(socket.socket(fileno=file), self.shared, slot)
        with contextlib.suppress(ConnectionError):
            fault = _load(worker, self.setting)
            worker.say({"failed": fault} if fault else {"ready": True})
            if not fault:
                worker.serve()

    def kill(self, token: int) -> None:
        """End a worker and its process group."""
        for process, known in self.workers.items():
            if known == token:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):  # it had not made its group yet
                    os.kill(process, signal.SIGKILL)

    def reap(self) -> None:
        """Take leave of what has ended: first end what a dead worker left in its group, then what it had detached."""
        died = False
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if ended.si_pid in self.workers:
                    os.killpg(ended.si_pid, signal.SIGKILL)
            _, status = os.waitpid(ended.si_pid, 0)
            token = self.workers.pop(ended.si_pid, None)
            if token is not None:
                died = True
                self.say({"ended": token, "status": status})
        if died:
            self.sweep()

    def sweep(self) -> None:
        """End processes that had detached themselves from a worker: they are children of this one by now."""
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        with contextlib.suppress(OSError):
            for process in map(int, children.read_text().split()):
                if process not in self.workers:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(process, signal.SIGKILL)

    def end_all(self) -> None:
        """End every worker and everything that workers left."""
        for token in list(self.workers.values()):
            self.kill(token)
        self.workers = {}
        end = time.monotonic() + _LAST
        while time.monotonic() < end:
            self.sweep()
            try:
                process, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                time.sleep(0.005)


def _be_expendable(memory: int) -> None:
    """Limit the memory, and be the first to go when the machine runs out of it."""
    import resource

    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory << 20, memory << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _load(worker: Worker, setting: Setting) -> str:
    """Load the rewards; return what is wrong with one."""
    set_isolation(setting.isolation)
    for name, pickled in zip(setting.names, setting.rewards, strict=True):
        try:
            for module, path in setting.modules.items():
                if module.encode() in pickled:
                    loaded = load_module(Path(path))
                    if not module.startswith(USER):
                        sys.modules[module] = loaded
            worker.rewards.append(pickle.loads(pickled))
        except BaseException as error:  # foreign code
            what = f"{type(error).__name__}: {shorten(str(error))}"
            return f"reward {name!r} cannot be loaded in a worker process: {what}"
    return ""


def main(channel: int, shared: int, rewards: int, parent: int) -> None:
    """Run the nursery on inherited files, which nothing that rewards start shall inherit."""
    for file in (channel, shared):
        os.set_inheritable(file, False)
    Nursery(socket.socket(fileno=channel), Shared(shared, rewards), parent).serve()
