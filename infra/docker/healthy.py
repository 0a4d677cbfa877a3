"""Asks the api-server whether a part of Airflow is healthy: metadatabase, scheduler, dag_processor or triggerer."""

import json
import os
import sys
from urllib.request import urlopen

URL = os.environ.get("AIRFLOW_HEALTH_URL", "http://api-server:8080/api/v2/monitor/health")


def main(part: str) -> int:
    """The exit status: 0 where it is."""
    with urlopen(URL, timeout=10) as answer:  # noqa: S310 - the deployment's own URL
        status = json.load(answer)[part]["status"]
    print(f"{part}: {status}")
    return 0 if status == "healthy" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
