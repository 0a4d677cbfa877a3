"""A node of its own process: `python -m tests.node.runner SETTINGS.json PLAN.json ATTEMPT` runs the plan's jobs."""

import sys
from pathlib import Path

from pipelines import node, storage
from pipelines.records import Plan
from pipelines.settings import Settings

if __name__ == "__main__":
    settings = Settings.model_validate_json(Path(sys.argv[1]).read_bytes())
    plan = Plan.model_validate_json(Path(sys.argv[2]).read_bytes())
    node.run_jobs(
        settings,
        storage.open_store(settings),
        plan,
        plan.nodes[0].name,
        int(sys.argv[3]),
        lambda line: print(line, flush=True),
    )
