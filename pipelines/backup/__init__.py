"""Backup of a store to another one, and restoring it: by content, so that a second backup copies what is new.

    objects/<sha256>     the bytes of an object, once however many objects and backups have them
    backups/<id>.json    what a backup has; written last, it makes the backup

What commits something is listed before what it refers to, and restored after it, see `listing`. So a run whose landing
is under way is in the backup as a whole, or `runs` has nothing of it.

To its place a backup is what a publication is to a dataset, and pruning what collecting is: `datasets.claims` keep them
out of each other's way, below `datasets/backups/`.
"""

from pipelines.backup.kept import Backup, Kept, load
from pipelines.backup.making import make
from pipelines.backup.pruning import Pruned, prune
from pipelines.backup.restoring import damaged, fetch, restore

__all__ = ["Backup", "Kept", "Pruned", "damaged", "fetch", "load", "make", "prune", "restore"]
