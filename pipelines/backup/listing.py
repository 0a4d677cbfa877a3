"""What of a store is kept, in the order that makes what commits something the first to be listed.

These are the logs of the tables, `runs` first (a landing writes it last), then tags and manifests of datasets.
"""

import re
from collections.abc import Iterable, Mapping

from pipelines import keys
from pipelines.errors import BadKey
from pipelines.storage import Store, Stored

_LOG = re.compile(r"^tables/([^/]+)/_delta_log/(\d{20})\.(checkpoint)?")
_RANKS = (
    r"^tables/runs/_delta_log/",
    r"^tables/[^/]+/_delta_log/",
    r"^datasets/[^/]+/tags/",
    r"^datasets/[^/]+/versions/",
)
_NOT_KEPT = re.compile(r"^(probe|restoring)/|^datasets/[^/]+/(publishing|publishers|collecting)/|/_last_checkpoint\Z")
"""What is of the moment: who is at work, and a hint that may be newer than the log as it was listed."""

LAST_RANK = len(_RANKS)


def rank(key: str) -> int:
    """What is listed first and restored last has the least."""
    return next((number for number, pattern in enumerate(_RANKS) if re.match(pattern, key)), LAST_RANK)


def listed(store: Store) -> tuple[list[Stored], list[str]]:
    """Every object that is kept, by rank; and the keys of those that are none of ours."""
    tables, datasets = store.folders_under("tables"), store.folders_under("datasets")
    first = [f"tables/{name}/_delta_log" for name in sorted(tables, key=lambda name: name != "runs")]
    first += [f"datasets/{name}/{part}" for part in ("tags", "versions") for name in datasets]
    found: dict[str, Stored] = {}
    left_out: list[str] = []
    for prefix in (*first, *store.roots()):
        is_all = "/" not in prefix
        for each in store.objects_under(prefix):
            if is_all and rank(each.key) < LAST_RANK:
                continue  # it came after what commits was listed
            if not _NOT_KEPT.search(each.key):
                found[each.key] = each
    for key in list(found):
        try:
            keys.checked(key)
        except BadKey:
            left_out.append(key)
            del found[key]
    whole = _last_versions(found)
    kept = [each for each in found.values() if not (log := _LOG.match(each.key)) or int(log[2]) <= whole[log[1]]]
    return sorted(kept, key=lambda each: (rank(each.key), each.key)), sorted(left_out)


def _last_versions(found: Iterable[str]) -> Mapping[str, int]:
    """The version of each table up to which its log was listed without a gap: a listing takes time.

    A checkpoint stands for every version before it, which may be gone.
    """
    versions: dict[str, set[int]] = {}
    last: dict[str, int] = {}
    for log in filter(None, map(_LOG.match, found)):
        versions.setdefault(log[1], set()).add(int(log[2]))
        if log[3]:
            last[log[1]] = max(int(log[2]), last.get(log[1], 0))
    for name, there in versions.items():
        last.setdefault(name, min(there))
        while last[name] + 1 in there:
            last[name] += 1
    return last
