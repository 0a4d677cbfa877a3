"""Late raw outputs: what a node sent from its spool, maybe after the run's rows were made. Nobody may miss it.

Of each a word is left in the store before the node forgets it. The word goes when the run's rows have landed with it.
"""

from collections.abc import Collection, Mapping

from pipelines import keys
from pipelines.storage import Store


def tell(store: Store, key: str) -> None:
    """Leave word that a raw output of this key has come, from a spool."""
    store.create(keys.late_key(key), key.encode())


def runs(store: Store) -> Mapping[str, tuple[str, ...]]:
    """For each run that has word of such, and has been parsed, the keys of the words; oldest first.

    A run that has not been parsed yet will be, and then finds them.
    """
    words: dict[str, tuple[str, ...]] = {}
    for key in store.keys_under(keys.LATE):
        run = keys.late_run(key)
        words[run] = (*words.get(run, ()), key)
    return {run: own for run, own in words.items() if store.keys_under(keys.batches_prefix(run))}


def forget(store: Store, words: Collection[str]) -> None:
    """They have been heeded."""
    for key in words:
        store.delete(key)
