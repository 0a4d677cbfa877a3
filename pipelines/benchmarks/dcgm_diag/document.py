"""The document of `dcgmi diag -j`, as DCGM 3 and DCGM 4 print it: tests, and what each said of which GPU."""

import re
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import UnknownOutput
from pipelines.families import dcgm_tool
from pipelines.records import Labels

_ROOTS = ("DCGM Diagnostic", "DCGM GPU Diagnostic")  # of DCGM 4, of DCGM 3
_NAMES = {"gpu_memory": "memory"}  # of DCGM 3, as DCGM 4 calls it; otherwise they differ in how they are spelled
_STATUSES = frozenset({"pass", "fail", "warn", "skip", "not run"})


def _listed(value: Any) -> Any:
    """A list without the nulls that DCGM 3 leaves for GPUs that a test did not run on; one text as a list."""
    if isinstance(value, str | dict):
        return (value,)
    return tuple(each for each in value if each is not None) if isinstance(value, list) else value or ()


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Said(_Read):
    """A warning. DCGM's older versions print the text alone."""

    text: str = Field(validation_alias=AliasChoices("warning", "warnings"))
    error_id: int | None = None
    error_category: int | None = None
    error_severity: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, given: Any) -> Any:
        return {"warning": given} if isinstance(given, str) else given


class Result(_Read):
    status: str
    gpu_id: int | str | None = None  # DCGM 3; a number in the tests of the category Deployment
    gpu_ids: str | None = None  # DCGM 2: "0,1"
    entity_group: str | None = None  # DCGM 4
    entity_id: int | None = None
    warnings: Annotated[tuple[Said, ...], BeforeValidator(_listed)] = ()
    info: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()

    @model_validator(mode="after")
    def _known(self) -> "Result":
        if self.status.lower() not in _STATUSES:
            raise ValueError("a status that DCGM does not have")
        if not all(re.fullmatch(r"\d{1,6}", gpu) for gpu in self._gpus):
            raise ValueError("a GPU without a number")
        return self

    @property
    def passes(self) -> bool:
        return self.status.lower() == "pass"

    @property
    def fails(self) -> bool:
        """DCGM 4 prints Warn as Fail, so that the two are one here."""
        return self.status.lower() in ("fail", "warn")

    @property
    def skipped(self) -> bool:
        return self.status.lower() == "skip"

    @property
    def _gpus(self) -> tuple[str, ...]:
        if self.entity_group == "GPU" and self.entity_id is not None:
            return (str(self.entity_id),)
        if self.gpu_id is not None:
            return (str(self.gpu_id),)
        return tuple(word.strip() for word in (self.gpu_ids or "").split(",") if word.strip())

    @property
    def about(self) -> tuple[Labels, ...]:
        """The labels of what it is about: a GPU each, another part, or, without labels, the whole node."""
        if self._gpus:
            return tuple({"gpu": gpu} for gpu in self._gpus)
        if self.entity_group not in (None, "None") and self.entity_id is not None:
            return ({"entity": f"{self.entity_group} {self.entity_id}"},)
        return ({},)


class Test(_Read):
    name: str
    results: Annotated[tuple[Result, ...], BeforeValidator(_listed)] = ()
    test_summary: Result | None = None

    @property
    def label(self) -> str:
        """`targeted_power` of "Targeted Power"."""
        words = re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_") or "unnamed"
        return _NAMES.get(words, words)

    @property
    def all_results(self) -> tuple[Result, ...]:
        """Those of the GPUs that are to blame, and the summary where it says what none of them does.

        DCGM 4 fails all GPUs for what it warns of one, or without naming one (Plugin::SetResult). What names none
        stands in the summary, which from 4.6 on repeats the others.
        """
        summary = self.test_summary
        if summary is None:
            return self.results
        own = [said for result in self.results for said in result.warnings]
        unnamed = tuple(said for said in summary.warnings if said not in own)
        to_blame = tuple(each for each in self.results if each.warnings or not each.fails or not (own or unnamed))
        if self.results and not (summary.fails and (unnamed or not any(each.fails for each in to_blame))):
            return to_blame
        return (*to_blame, summary.model_copy(update={"warnings": unnamed}))


class Category(_Read):
    tests: Annotated[tuple[Test, ...], BeforeValidator(_listed)] = ()


class Diagnostic(_Read):
    test_categories: Annotated[tuple[Category, ...], BeforeValidator(_listed)] = ()
    runtime_error: str | None = None

    @property
    def tests(self) -> tuple[Test, ...]:
        return tuple(test for category in self.test_categories for test in category.tests)


def read(printed: str) -> Diagnostic | None:
    """The diagnostic in what dcgmi printed; None where it printed none.

    Raises:
        UnknownOutput: there is one, and it is not of the form that DCGM 3 or 4 prints.
    """
    found = dcgm_tool.document(printed)
    root = next((found[name] for name in _ROOTS if name in found), None) if found else None
    if root is None:
        return None
    try:
        diagnostic = Diagnostic.model_validate(root)
    except (ValidationError, RecursionError) as e:
        raise UnknownOutput(dcgm_tool.TOOL, "a diagnostic of DCGM 3 or 4", printed) from e
    if not diagnostic.test_categories and diagnostic.runtime_error is None:
        raise UnknownOutput(dcgm_tool.TOOL, "a diagnostic with tests", printed)
    return diagnostic
