"""A sandbox for programs nobody vouches for: bubblewrap around a warm fork server, the verdict made outside."""

from concordant.scoring.isolation import Level, SandboxError, isolation, set_isolation
from concordant.scoring.sandbox.limits import Limits
from concordant.scoring.sandbox.pool import Sandbox, available, shared
from concordant.scoring.sandbox.programs import (
    CallTest,
    Program,
    Result,
    StdioTest,
    Test,
    TestResult,
    read_tests,
)

__all__ = [
    "CallTest",
    "Level",
    "Limits",
    "Program",
    "Result",
    "Sandbox",
    "SandboxError",
    "StdioTest",
    "Test",
    "TestResult",
    "available",
    "isolation",
    "read_tests",
    "set_isolation",
    "shared",
]
