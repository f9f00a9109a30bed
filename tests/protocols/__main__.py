"""Try every protocol with every disturbance: ``python -m tests.protocols [PART OF A NAME]``. Takes some minutes."""

import sys
import tempfile
import time
from pathlib import Path

from tests.protocols.harness import try_all
from tests.protocols.protocols import protocols


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    tried = broken = 0
    for protocol in protocols():
        if wanted not in protocol.name:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            count, problems = try_all(protocol, Path(folder))
        tried, broken = tried + count, broken + len(problems)
        print(
            f"{protocol.name}: {count} interleavings, {len(problems)} failed, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        for problem in problems[:5]:
            print(f"  {problem}")
    print(f"{tried} interleavings, {broken} failed")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
