"""The command `fleetmark`: every module of `pipelines.commands` adds its verbs."""

import importlib
import pkgutil

import click

import pipelines
import pipelines.commands
from pipelines.console import Verbs


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(pipelines.__version__, prog_name="fleetmark")
def main() -> None:
    """Benchmarks of a fleet that can be believed: plan, measure, validate, land, read.

    \b
    One machine, no Airflow:   fleetmark run --suite quick
    One machine, with Airflow: fleetmark demo
    Read the numbers:          fleetmark results
                               fleetmark query "SELECT metric, median(value) FROM results GROUP BY ALL"

    Settings are environment variables (`fleetmark settings` lists them). Every verb that prints a result takes --json.
    Exit status: 0 done, 1 failed and may be tried again, 2 wrong input.
    """


for _module in pkgutil.iter_modules(pipelines.commands.__path__, "pipelines.commands."):
    for _verb in getattr(importlib.import_module(_module.name), "VERBS", ()):
        main.add_command(_verb)
