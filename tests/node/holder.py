"""Another process that holds the lease until it is killed or told to go: `python -m tests.node.holder FOLDER RUN`."""

import sys
from pathlib import Path

from pipelines import lease, process

if __name__ == "__main__":
    with lease.held(Path(sys.argv[1]), sys.argv[2], "gpu-01", 10.0, print):
        process.run(
            ("sh", "-c", "exec sleep 300"),
            timeout_s=float(sys.argv[3]),
            started=lambda group: print("held", group, flush=True),
        )
