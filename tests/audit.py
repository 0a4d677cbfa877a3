"""`python -m tests.audit`: the known vulnerabilities of what `dev.lock` pins, which has all that the other locks have.

pip-audit takes it for good news when a service has never heard of a package. So each is first asked about a version
that is known to be vulnerable. Exit status: 0 none found, 1 some found, 2 nobody answered and nothing was audited.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements/dev.lock"
SERVICES = ("pypi", "osv")
_PIP_AUDIT = "pip-audit==2.10.1"
_KNOWN_BAD = "jinja2==2.4.1\n"
_DEADLINE_S = 600


def asked(service: str, requirements: Path, *options: str) -> list[dict[str, Any]]:
    """What a service says of each package. Raises: ValueError: it does not answer."""
    uvx = Path(sys.executable).with_name("uvx")
    argv = (uvx, _PIP_AUDIT, "-s", service, "--disable-pip", *options, "-r", requirements, "-f", "json")
    done = subprocess.run(
        (*argv, "--progress-spinner", "off"), check=False, capture_output=True, text=True, timeout=_DEADLINE_S
    )
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except ValueError as e:
        raise ValueError(done.stderr.strip().rpartition("\n")[2][:300]) from e


def unanswered(service: str) -> str | None:
    """Why a service cannot be relied on; None where it knows what is known."""
    with TemporaryDirectory() as folder:
        canary = Path(folder) / "canary.txt"
        canary.write_text(_KNOWN_BAD)
        try:
            (said,) = asked(service, canary, "--no-deps")
        except ValueError as e:
            return str(e)
    return None if said.get("vulns") else str(said.get("skip_reason", "it knows of nothing"))


def findings(said: list[dict[str, Any]]) -> list[str]:
    """A line for each vulnerability, and for each package about which nothing could be said."""
    lines = []
    for package in said:
        named = f"{package['name']} {package.get('version', '')}".strip()
        if reason := package.get("skip_reason"):
            lines.append(f"{named}: not audited: {reason}")
        lines += [
            f"{named}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'no version yet'}"
            for each in package.get("vulns", ())
        ]
    return lines


def main() -> int:
    for service in SERVICES:
        if (why := unanswered(service)) is not None:
            print(f"{service}: no answer: {why}")
            continue
        said = asked(service, LOCK, "--require-hashes")
        found = findings(said)
        print("\n".join([*found, f"{service}: {len(said)} packages, {len(found)} findings"]))
        return 1 if found else 0
    print("no service of vulnerabilities answers; NOTHING WAS AUDITED")
    return 2


if __name__ == "__main__":
    sys.exit(main())
