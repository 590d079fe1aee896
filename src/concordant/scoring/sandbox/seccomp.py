"""A system call filter for the sandbox, as the classic BPF program that `bwrap --seccomp` loads.

Namespaces and dropped capabilities do the isolation; the filter takes away what they do not cover (new user
namespaces, sockets that no network namespace confines such as AF_VSOCK, memory that no rlimit counts, IPC objects
that outlive their maker) and kernel interfaces with a record of faults that no program under test needs.
Numbers are those of the kernel's syscall tables (x86-64, and the generic one of AArch64), which never change.
"""

import errno
import platform
import socket
import struct

from concordant.scoring.sandbox.limits import SandboxError

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the table below and audit number, by `platform.machine()`."""

DENIED: dict[str, tuple[int | None, int | None]] = {
    # looking into other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "move_pages": (279, 239), "migrate_pages": (256, 238),
    # kernel interfaces with a large surface
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "vmsplice": (278, 75), "fanotify_init": (300, 262),
    "personality": (135, 92), "mbind": (237, 235), "set_mempolicy": (238, 237), "modify_ldt": (154, None),
    "uselib": (134, None), "iopl": (172, None), "ioperm": (173, None),
    # file systems, apart from the server's own mount and umount2, for which programs lack the capability
    "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429), "open_tree": (428, 428),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # attributes of files: on /tmp they would stay for the next program
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162),
    "acct": (163, 89), "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "vhangup": (153, 58),
    # objects that stay when the process is gone, and memory that no rlimit counts
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "semget": (64, 190),
    "semctl": (66, 191), "semop": (65, 193), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
}  # fmt: skip

NEW_NAMESPACES = 0x7E020000
"""Every CLONE_NEW* flag that `clone` takes."""
NEW_PID = 0x20000000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; both machines are little-endian
_Code = list[tuple[int, int, int, int]]


def _refuse(code: int = errno.EPERM) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ERRNO | code)


def _on_call(number: int, body: _Code) -> _Code:
    """Run `body`, which must return, if the system call is `number`."""
    return [(_EQUAL, 0, len(body), number), *body]


def _only_if_argument(index: int, allowed: tuple[int, ...], code: int = errno.EPERM) -> _Code:
    tests: _Code = [(_EQUAL, len(allowed) - i, 0, value) for i, value in enumerate(allowed)]
    return [(_LOAD, 0, 0, _ARGUMENT + 8 * index), *tests, _refuse(code), (_RETURN, 0, 0, _ALLOW)]


def _instructions(column: int, audit: int) -> _Code:
    number = {"clone3": (435, 435), "clone": (56, 220), "unshare": (272, 97), "setns": (308, 268)}
    number |= {"socket": (41, 198), "ioctl": (16, 29)}
    call = {name: pair[column] for name, pair in number.items()}
    code: _Code = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if column == 0:  # the x32 table has other numbers for the same calls
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for pair in DENIED.values():
        denied = pair[column]
        if denied is not None:
            code += _on_call(denied, [_refuse()])
    code += _on_call(call["clone3"], [_refuse(errno.ENOSYS)])  # its flags lie in memory; libc then uses clone
    argument = (_LOAD, 0, 0, _ARGUMENT)
    code += _on_call(
        call["clone"], [argument, (_ANY_BIT, 0, 1, NEW_NAMESPACES), _refuse(), (_RETURN, 0, 0, _ALLOW)]
    )
    code += _on_call(call["unshare"], _only_if_argument(0, (NEW_PID,)))
    code += _on_call(call["setns"], _only_if_argument(1, (NEW_PID,)))
    code += _on_call(call["socket"], _only_if_argument(0, FAMILIES, errno.EAFNOSUPPORT))
    second = (_LOAD, 0, 0, _ARGUMENT + 8)
    deny: _Code = [
        second,
        (_EQUAL, 1, 0, TIOCSTI),
        (_EQUAL, 0, 1, TIOCLINUX),
        _refuse(),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code += _on_call(call["ioctl"], deny)
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def program() -> bytes:
    """Assemble the filter for this machine; refuses on machines whose numbers it does not know."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise SandboxError(
            f"the sandbox has no system call table for {machine}; it runs on {', '.join(MACHINES)}"
        )
    return b"".join(struct.pack("=HBBI", *line) for line in _instructions(*MACHINES[machine]))
