"""Airflow embedded on this machine: started, watched and stopped as one, with all of its state in one folder."""

from pipelines.embedded.demo import demo
from pipelines.embedded.instance import down, up

__all__ = ["demo", "down", "up"]
