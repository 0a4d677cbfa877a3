"""Fleetmark: benchmarks of a fleet, from an inventory to tables that can be believed. Never imports Airflow."""

__version__ = "0.1.0"
