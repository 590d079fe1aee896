"""Every attempt to break out of the sandbox that the tests make, as a table.

python benchmarks/escape_suite.py [--json PATH]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.scoring.escapes import ESCAPES, LIMITS, baited, namespace_of, residents, run_escape, servers

from concordant.scoring.sandbox import Program, Sandbox


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    rows = []
    with baited() as bait, Sandbox(slots=1, limits=LIMITS) as box:
        box.run(Program("print(1)"))
        started = servers(box)
        namespace = namespace_of(started[1])
        for case in ESCAPES:
            begin = time.perf_counter()
            fault = run_escape(box, case, bait.places) or bait.touched()
            seconds = time.perf_counter() - begin
            left = len(residents(namespace) - set(started))
            healthy = box.run(Program("print(int(input()) + 1)", "41")).stdout == "42\n"
            row = {"attempt": case.name, "escaped": bool(fault), "fault": fault, "left_running": left}
            row |= {
                "server_lived": servers(box) == started,
                "healthy_after": healthy,
                "seconds": round(seconds, 3),
            }
            rows.append(row)
            good = not fault and not left and healthy and row["server_lived"]
            print(f"{'contained' if good else 'FAILED   '} {seconds:6.2f} s  {case.name} {fault}")
    closed = time.monotonic()
    while residents(namespace) and time.monotonic() < closed + 10:
        time.sleep(0.01)
    print(f"all processes gone {time.monotonic() - closed:.2f} s after closing")
    found = {
        "machine": f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}",
        "user": "root" if os.geteuid() == 0 else "unprivileged",
        "bubblewrap": subprocess.run(["bwrap", "--version"], capture_output=True, text=True).stdout.strip(),
        "attempts": len(rows),
        "escaped": sum(row["escaped"] for row in rows),
        "left_running_at_the_end": len(residents(namespace)),
        "rows": rows,
    }
    print(
        f"{found['attempts']} attempts, {found['escaped']} escaped, {found['left_running_at_the_end']} left running"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
