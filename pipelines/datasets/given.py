"""The datasets that jobs on this node are given: brought into its cache, put together as files, gone after use."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines.datasets import catalog, materialise, stage, stage_plan, stagings
from pipelines.datasets.events import Staging
from pipelines.datasets.manifest import Manifest
from pipelines.errors import (
    CacheFull,
    CacheUnusable,
    CorruptObject,
    DamagedShard,
    DownloadRefused,
    KeyNotFound,
    Unknown,
)
from pipelines.records import Outcome, Refusal
from pipelines.settings import Settings
from pipelines.storage import Store

_NOT_STAGED = (CacheUnusable, CorruptObject, Unknown)
_NOT_MATERIALISED = (CacheFull, CacheUnusable, CorruptObject, DamagedShard, DownloadRefused, KeyNotFound)

Given = Mapping[str, Path | Refusal]
"""By NAME@ID the folder with the version's files, or why there is none."""

Say = Callable[[str], None]


@contextmanager
def given(
    settings: Settings, store: Store, wanted: Sequence[str], *, node: str, staging_id: str, say: Say
) -> Iterator[Given]:
    """A folder for each version, for the time of the block. What staging took is kept in the store.

    Raises:
        StoreUnreachable, StoreRefused: nothing can be said of any of them.
    """
    here = settings.model_copy(update={"node": node})
    found: dict[str, Path | Refusal] = {}
    staged: list[tuple[Manifest, Staging]] = []
    for reference in wanted:
        try:
            version = catalog.load(store, reference)
            shards = stage_plan.choose(version, "all")
            staged.append((version, stage.stage(here, store, version, shards, staging_id=staging_id, say=say)))
        except _NOT_STAGED as e:
            found[reference] = refusal(reference, str(e))
    if staged:
        stage.record(store, stagings.together([done for _, done in staged]))
    with ExitStack() as folders:
        for version, done in staged:
            reason = next((transfer.reason for transfer in done.transfers if transfer.reason), None)
            try:
                found[version.reference] = (
                    refusal(version.reference, reason)
                    if reason
                    else folders.enter_context(materialise.materialise(here, store, version, say))
                )
            except _NOT_MATERIALISED as e:
                found[version.reference] = refusal(version.reference, str(e))
        yield found


def refusal(reference: str, reason: str) -> Refusal:
    """Why the jobs that need this version are not measured."""
    return Refusal(outcome=Outcome.NOT_MEASURED, reason=f"dataset {reference} is not on this node: {reason}")
