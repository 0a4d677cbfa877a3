"""Options that several verbs share, and what they are turned into."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pipelines.records import Scalar
    from pipelines.stages import Request

F = TypeVar("F", bound=Callable[..., Any])

ONLY_IN_AIRFLOW = (
    "writes to raw devices, and somebody else has to approve that: start it in the Airflow UI, as a suite of the DAG "
    "fleet_benchmark"
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document for scripts.")


class Size(click.ParamType["int"]):
    """A number of bytes: `128MiB`, `1GB`, `4096`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pydantic import ByteSize, TypeAdapter, ValidationError

        try:
            return int(TypeAdapter(ByteSize).validate_python(value))
        except ValidationError:
            self.fail(f"{value!r} is no size such as 128MiB or 1GB", param, ctx)


def size(size_bytes: float) -> str:
    """A number of bytes for people: `1.23 GB`."""
    from pipelines.datasets.meter import size as text

    return text(size_bytes)


def selection(command: F) -> F:
    """--nodes and --sample."""
    command = click.option(
        "--nodes",
        multiple=True,
        metavar="TERM",
        help="A node's name, a glob (gpu-*), or conditions (sku=h200,rack=r1 or feature=rdma). Repeat for more; "
        "default: every node of the inventory.",
    )(command)
    return click.option("--sample", type=click.IntRange(min=1), help="Keep this many of them at random.")(command)


def request(command: F) -> F:
    """What makes a run: suite, selection, overrides, repeats, note."""
    command = selection(command)
    command = click.option("--suite", default="quick", show_default=True, help="See `fleetmark suites`.")(command)
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="PARAM=VALUE",
        callback=lambda _context, _parameter, given: assignments(given),
        help="Override a benchmark parameter, e.g. --set runtime_s=1. Repeat for more.",
    )(command)
    command = click.option("--repeats", type=click.IntRange(1, 100), help="Instead of the suite's own.")(command)
    command = click.option("--tenant", default="default", show_default=True, help="Whose quota it counts on.")(command)
    return click.option("--note", default="", help="Kept with the run.")(command)


def assignments(given: tuple[str, ...]) -> "Mapping[str, Scalar]":
    """`("runtime_s=1", "profile=mixed")` as values: JSON where it is JSON, else the text itself."""
    values: dict[str, Scalar] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{each!r} is not PARAM=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values[name] = value if isinstance(value, bool | int | float | str) else text
    return values


def as_request(**fields: Any) -> "Request":
    """The options of `request` as a record."""
    from pipelines.stages import Request

    return Request(**fields)
