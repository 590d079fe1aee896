"""Starting the fork server inside bubblewrap: what the sandbox contains and what it is allowed."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from concordant.scoring.isolation import Level, SandboxError
from concordant.scoring.sandbox import seccomp

SERVER = Path(__file__).with_name("server.py")
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL")
"""Of the server, inside the sandbox's own user namespace; programs have none."""
OPTIONS = ("-s", "-P", "-B", "-X", "utf8")
"""Of the interpreter: no user site, no script folder on the path, no byte code written."""
MISSING = (
    "running programs needs a sandbox and there is no `bwrap`: install the package bubblewrap (apt install "
    "bubblewrap, dnf install bubblewrap). To run untrusted code without one, say --unsafe-no-sandbox; every record "
    "will show it"
)
REFUSED = (
    "bubblewrap does not start here: {detail}. It needs user namespaces: on the host `sysctl "
    "user.max_user_namespaces` must not be 0 and, on Ubuntu, `kernel.apparmor_restrict_unprivileged_userns` must be "
    "0; a Docker container needs --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined, or --privileged. To run untrusted code without a sandbox, say "
    "--unsafe-no-sandbox; every record will show it"
)
_MAKE_NAMESPACE = (
    "import ctypes, sys; print(ctypes.CDLL(None).unshare(0x10000000), flush=True); sys.stdin.read()"
)
_EXPENDABLE = '(echo 1000 >/proc/self/oom_score_adj) 2>/dev/null; exec "$@"'
"""Where memory runs out, the kernel is to end sandboxes before anything else; children inherit the score."""
_LAST_USER = 1_999_999_999


@dataclass(frozen=True)
class Server:
    """A server that was started; it says that it is ready over the socket."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    messages: int
    """File with what bubblewrap and the interpreter wrote to stderr."""

    def complaint(self) -> str:
        """What went wrong, in the words of bubblewrap."""
        text = os.pread(self.messages, 4000, 0).decode(errors="replace").strip()
        return text.splitlines()[-1] if text else f"it ended with exit code {self.process.poll()}"

    def end(self) -> None:
        """End it with everything in it. It does so itself when its socket closes, and then nothing is left when this
        returns; one that hangs is killed, outside by SIGKILL and inside, a moment later, by --die-with-parent.
        """
        self.control.close()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.messages)


def start(level: Level) -> Server:
    """Start a server.

    The calling thread must live as long as the server: the kernel ends the sandbox with it (--die-with-parent).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    messages = os.memfd_create("messages", os.MFD_CLOEXEC)
    try:
        with theirs, ExitStack() as stack:
            fds: list[int] = []
            bare = [sys.executable, *OPTIONS, str(SERVER), "none"]
            command = bare if level == "none" else _command(fds, stack)
            process = subprocess.Popen(
                ["/bin/sh", "-c", _EXPENDABLE, "sh", *command],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=messages,
                pass_fds=fds,
                env=_environment(os.environ.get("LD_LIBRARY_PATH", "")) if level == "none" else {},
                cwd="/",
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        os.close(messages)
        raise
    return Server(process, ours, messages)


def _environment(libraries: str) -> dict[str, str]:
    """Environment of the server; the hash seed is fixed so that equal programs print sets in equal order."""
    return {"PYTHONHASHSEED": "0"} | ({"LD_LIBRARY_PATH": libraries} if libraries else {})


def _command(fds: list[int], stack: ExitStack) -> list[str]:
    """Compose the command line; `fds` gets the descriptors it names, which `stack` closes."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError(MISSING)
    apart = _user_namespace() if os.geteuid() == 0 and _last_user() > 0 else None
    if apart is None:
        mode, user = "single", ["--unshare-user", "--uid", "1", "--gid", "1"]
    else:
        mode, user = "mapped", ["--userns", str(apart)]
        fds.append(apart)
        stack.callback(os.close, apart)
    rules = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    stack.callback(os.close, rules)
    os.write(rules, seccomp.program())
    os.lseek(rules, 0, os.SEEK_SET)
    fds.append(rules)
    command = [bwrap, *user, "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    command += [
        "--unshare-cgroup-try",
        "--as-pid-1",
        "--die-with-parent",
        "--new-session",
        "--hostname",
        "sandbox",
    ]
    command += ["--seccomp", str(rules), "--cap-drop", "ALL"]
    for capability in CAPABILITIES:
        command += ["--cap-add", capability]
    command += ["--clearenv"]
    for name, value in _environment("/python/lib").items():
        command += ["--setenv", name, value]
    python = _python()
    command += [*_root(python), "--chdir", "/", "--", python[1], *OPTIONS, "/server.py", mode]
    return command


def _python() -> tuple[Path, str]:
    """Interpreter on the host and in the sandbox. The one that runs now, without the packages installed for it."""
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    return executable, f"/python/bin/{executable.name}"


def _root(python: tuple[Path, str]) -> list[str]:
    """Compose the file system: the interpreter, its standard library, shared libraries, three devices, an empty
    /tmp, and nothing else; read-only. No shell, no /proc, no /sys, no /etc, no homes.
    """
    parts = []
    for folder in ("/dev", "/usr", "/usr/lib", "/python", "/python/bin", "/python/lib"):
        parts += ["--perms", "0755", "--dir", folder]
    parts += ["--ro-bind", str(python[0]), python[1]]
    prefix = Path(sys.base_prefix)
    standard = Path(sysconfig.get_path("stdlib", vars={"base": str(prefix), "installed_base": str(prefix)}))
    inside = Path("/python") / standard.relative_to(prefix)
    if str(prefix) != "/usr":  # a Python of its own brings libraries along
        parts += ["--ro-bind", str(prefix / "lib"), "/python/lib"]
    if str(prefix) == "/usr" or not standard.is_relative_to(prefix / "lib"):
        parts += ["--ro-bind", str(standard), str(inside)]
    for extra in ("site-packages", "dist-packages"):
        if (standard / extra).is_dir():
            parts += ["--tmpfs", str(inside / extra), "--remount-ro", str(inside / extra)]
    for folder in _library_folders():
        parts += (
            ["--symlink", os.readlink(folder), folder]
            if os.path.islink(folder)
            else ["--ro-bind", folder, folder]
        )
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        parts += ["--dev-bind", device, device]
    parts += ["--symlink", "/dev/urandom", "/dev/random", "--symlink", "/tmp", "/dev/shm", "--dir", "/tmp"]
    return [*parts, "--ro-bind", str(SERVER), "/server.py", "--remount-ro", "/"]


def _library_folders() -> list[str]:
    """Name the folders with the C library and its like: only the multi-arch ones where the system has them."""
    wanted = ["/lib64", "/usr/lib64"]
    several = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    if os.path.isdir(f"/usr/lib/{several}"):
        wanted += ["/lib"] if os.path.islink("/lib") else [f"/lib/{several}", "/lib/ld-linux-aarch64.so.1"]
        wanted += [f"/usr/lib/{several}"]
        wanted += ["/usr/lib/ld-linux-aarch64.so.1"]
    else:
        wanted += ["/lib", "/usr/lib"]
    return [folder for folder in wanted if os.path.exists(folder)]


def _last_user() -> int:
    """Highest user id that root may hand out here, below those with a meaning; 0 if there is but one."""
    spans = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return min(_LAST_USER, max(start + count - 1 for start, _, count in spans))


def _user_namespace() -> int:
    """Make, as root, a user namespace with two users: root stays root, and 1 is one that owns nothing on the host.

    So programs are another user than their server, and one whose processes the kernel counts (root's it does not).
    Returns a descriptor of the namespace, which lives on without the process that made it.
    """
    maker = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _MAKE_NAMESPACE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert maker.stdout is not None
        if maker.stdout.readline().strip() != b"0":
            raise SandboxError(REFUSED.format(detail="unshare(CLONE_NEWUSER) failed"))
        users = f"0 0 1\n1 {_last_user()} 1\n"
        for table in ("uid_map", "gid_map"):
            Path(f"/proc/{maker.pid}/{table}").write_text(users)
        return os.open(f"/proc/{maker.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(REFUSED.format(detail=f"mapping users failed: {error}")) from error
    finally:
        maker.kill()
        maker.communicate()
