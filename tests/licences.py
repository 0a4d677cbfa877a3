"""`python -m tests.licences` writes docs/licences.md: the licence of each locked dependency, by its own metadata."""

import re
from collections import Counter
from importlib import metadata
from pathlib import Path

LOCKS = ("node", "worker", "control", "fleet")
_ROOT = Path(__file__).parents[1]
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)", re.MULTILINE)
PAGE = _ROOT / "docs/licences.md"
_LINE = re.compile(r"^\| (\S+) \| (.+) \| [a-z, ]+ \|$", re.MULTILINE)
_CLASSIFIER = "License :: OSI Approved :: "
_LONGEST = 60  # characters: some put the whole text there
_HEAD = """# Licences of the dependencies

What the locks in `requirements/` pin, and which licence each package says that it has. `python -m tests.licences`
writes it; a test compares them. What depends on Python's version keeps its line. A package without a line is not
installed on Linux.

| package | licence | in |
|---|---|---|
"""


def locked(lock: str) -> dict[str, str]:
    """The version of each package of a lock."""
    return dict(_PINNED.findall((_ROOT / f"requirements/{lock}.lock").read_text()))


def licence(package: str) -> str | None:
    """What the installed package says; None where it is not installed."""
    try:
        said = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return None
    if expression := said.get("License-Expression"):
        return str(expression)
    of_classifiers = [
        each.removeprefix(_CLASSIFIER) for each in said.get_all("Classifier") or () if _CLASSIFIER in each
    ]
    if of_classifiers:
        return ", ".join(sorted(of_classifiers))
    text = " ".join(str(said.get("License") or "not said").split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def noted() -> dict[str, str]:
    """The licence of each package that the page has now."""
    return dict(_LINE.findall(PAGE.read_text()))


def by_python(lock: str) -> set[str]:
    """The packages of a lock of which not every Python is given the same version."""
    counted = Counter(name for name, _ in _PINNED.findall((_ROOT / f"requirements/{lock}.lock").read_text()))
    return {name for name, times in counted.items() if times > 1}


def page() -> str:
    before = noted()
    varying = {name: said for lock in LOCKS for name in by_python(lock) if (said := before.get(name))}
    where: dict[str, list[str]] = {}
    for lock in LOCKS:
        for package in locked(lock):
            where.setdefault(package, []).append(lock)
    rows = (
        (package, varying.get(package) or licence(package) or before.get(package), locks)
        for package, locks in sorted(where.items())
    )
    return _HEAD + "".join(f"| {name} | {said} | {', '.join(locks)} |\n" for name, said, locks in rows if said)


if __name__ == "__main__":
    PAGE.write_text(page())
