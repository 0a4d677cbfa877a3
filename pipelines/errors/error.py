"""What every error that is raised on purpose has."""

from dataclasses import fields
from typing import Any, ClassVar


class FleetmarkError(Exception):
    """What callers catch at a boundary. `str(error)` is the whole sentence; the fields are for programs."""

    retryable: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
