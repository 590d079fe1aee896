"""What a program may use, and how well it is locked in."""

from dataclasses import dataclass, fields

from concordant.scoring.isolation import SandboxError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one run of a program (one test); what goes over them ends that run and no other."""

    cpu_seconds: int = 5
    """Processor time of each process (times the number of tests where tests share a process)."""
    wall_seconds: float = 5.0
    """Time on the clock for one test, kept by the caller's process."""
    memory_mb: int = 512
    """Address space of each process in MiB, the interpreter's own included."""
    processes: int = 16
    """Processes and threads at once. The sum of memory is bounded by `processes * memory_mb` and by nothing smaller."""
    output_bytes: int = 1_000_000
    """Longest stdout, stderr and returned value, each."""
    file_mb: int = 8
    """Size of the private /tmp, and of any one file, in MiB."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if not value > 0:
                raise SandboxError(f"limit {option.name} must be positive, got {value!r}")
