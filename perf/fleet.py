"""The rows of a made-up fleet: what its nodes measured in some nights of one month, as Arrow tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import keys
from pipelines.tables.schema import LABELS, TABLES

CASES: dict[str, tuple[tuple[str, str, float], ...]] = {  # case -> (metric, unit, typical value on this fleet's NVMe)
    "checkpoint": (("write_bandwidth", "B/s", 1.9e9), ("write_latency_p99", "s", 9e-3)),
    "mixed": (
        ("read_iops", "1/s", 210e3),
        ("read_latency_p99", "s", 420e-6),
        ("write_iops", "1/s", 90e3),
        ("write_latency_p99", "s", 610e-6),
    ),
    "rand_read": (
        ("read_iops", "1/s", 640e3),
        ("read_latency_p50", "s", 85e-6),
        ("read_latency_p99", "s", 240e-6),
        ("read_latency_p999", "s", 900e-6),
    ),
    "rand_write": (
        ("write_iops", "1/s", 260e3),
        ("write_latency_p50", "s", 110e-6),
        ("write_latency_p99", "s", 800e-6),
        ("write_latency_p999", "s", 3e-3),
    ),
    "seq_read": (
        ("read_bandwidth", "B/s", 6.6e9),
        ("read_latency_p50", "s", 1.1e-3),
        ("read_latency_p99", "s", 2.4e-3),
    ),
    "seq_write": (
        ("write_bandwidth", "B/s", 3.4e9),
        ("write_latency_p50", "s", 1.9e-3),
        ("write_latency_p99", "s", 5.2e-3),
    ),
}
HISTOGRAMS = (("rand_read", "read_latency", 85e-6), ("rand_write", "write_latency", 110e-6))
REPEATS = 3
COHORTS = ("h100", "h200")
FLOOR = 500e6  # of write_bandwidth in the case checkpoint
_CASES = tuple(CASES)
_OUTCOMES = ("ok", "tool_failed", "truncated", "not_measured")
_REASONS = ("", "fio ended with status 1", "fio was ended after its timeout", "the node did not answer")
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_BINS = 96

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Fleet:
    """60 measurements a node and night; the last `nightly` nights are files of their own, as before maintenance."""

    nodes: int
    nights: int
    last: date = date(2026, 11, 20)
    histogram_nights: int = 14
    nightly: int = 7
    seed: int = 20261120

    @property
    def dates(self) -> tuple[date, ...]:
        return tuple(self.last - timedelta(days=back) for back in reversed(range(self.nights)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"gpu-{number:04d}" for number in range(1, self.nodes + 1))


class Block:
    """The rows of some nights of one month. Every array below is indexed by (node, night, case, repeat)."""

    def __init__(self, fleet: Fleet, nights: tuple[date, ...]) -> None:
        self.fleet, self.nights = fleet, nights
        self.random = np.random.default_rng([fleet.seed, nights[0].toordinal()])
        shape = (fleet.nodes, len(nights), len(_CASES), REPEATS)
        self.jobs = int(np.prod(shape))
        self.outcome = self.random.choice(len(_OUTCOMES), size=shape, p=(0.997, 0.001, 0.001, 0.001))
        gone = np.random.default_rng(fleet.seed).choice(fleet.nodes, size=max(1, fleet.nodes // 200), replace=False)
        silent = np.array([i for i, night in enumerate(nights) if (fleet.last - night).days < 5], dtype=np.int64)
        self.outcome[np.ix_(gone, silent)] = _OUTCOMES.index("not_measured")
        fixed = np.random.default_rng(fleet.seed + 1)
        self.speed = np.exp(fixed.normal(0, 0.02, fleet.nodes))
        self.speed[fixed.choice(fleet.nodes, size=max(1, fleet.nodes // 100), replace=False)] *= 0.8
        self.runs_of_nights = [_run(night) for night in nights]
        self.job_id = _hex(self.random, self.jobs, 16)
        self.sha256 = _hex(self.random, self.jobs, 64)

    def aged(self, night: Indices) -> NDArray[np.bool_]:
        """Whether the night came after the driver update, which costs 4 %."""
        after = np.array([(self.fleet.last - each).days < 21 for each in self.nights])
        return after[night]

    def columns(self, index: tuple[Indices, Indices, Indices, Indices]) -> dict[str, Any]:
        """The columns that measurements, histograms, quarantine and runs share, for the jobs at `index`."""
        node, night, case, repeat = index
        job = np.ravel_multi_index(index, self.outcome.shape)
        started = [datetime(n.year, n.month, n.day, 2, tzinfo=UTC) for n in self.nights]
        instants = np.array([int(at.timestamp() * 1e6) for at in started])
        seconds = case * 600 + repeat * 60
        runs = pa.array(self.runs_of_nights)
        names = pa.array(self.fleet.names)
        dates = pa.array([f"{n}" for n in self.nights])
        strings = {"run_id": _take(runs, night), "node": _take(names, node), "job_id": _take(self.job_id, job)}
        raw = ("raw", _take(dates, night), strings["run_id"], strings["node"], strings["job_id"], "001.json")
        versions = pa.array(["3.33", "3.36"])
        environments = pa.array(["env-535-a1b2c3", "env-550-d4e5f6"])
        aged = self.aged(night).astype(np.int64)
        return strings | {
            "month": _take(pa.array([f"{n:%Y-%m}" for n in self.nights]), night),
            "night": _take(pa.array(self.nights, pa.date32()), night),
            "cohort": _take(pa.array(COHORTS), node % len(COHORTS)),
            "benchmark": _same("fio", len(node)),
            "case": _take(pa.array(_CASES), case),
            "repeat": pa.array(repeat + 1, pa.int32()),
            "attempt": pa.array(np.ones(len(node), np.int32)),
            "environment_id": _take(environments, aged),
            "tool": _same("fio", len(node)),
            "tool_version": _take(versions, aged),
            "simulated": pa.array(np.zeros(len(node), bool)),
            "raw_key": pc.binary_join_element_wise(*raw, "/"),
            "raw_sha256": _take(self.sha256, job),
            "started_at": pa.array(instants[night] + seconds * 1_000_000, pa.int64()).cast(pa.timestamp("us", "UTC")),
            "batch_id": _take(pa.array([keys.batch_id(run, run) for run in self.runs_of_nights]), night),
            "landed_at": pa.array(instants[night] + 7_200_000_000, pa.int64()).cast(pa.timestamp("us", "UTC")),
            "dataset": pa.nulls(len(node), pa.string()),
        }

    def measurements(self) -> Iterator[pa.Table]:
        """One table per metric, in the order of the table's sort."""
        schema = TABLES["measurements"].schema
        for metric in sorted({name for metrics in CASES.values() for name, _, _ in metrics}):
            cases, units, typical = _of_metric(metric)
            node, night, which, repeat = np.nonzero(self.outcome[:, :, cases, :] == 0)
            index = (node, night, np.array(cases)[which], repeat)
            better = -1.0 if "latency" in metric else 1.0
            factor = self.speed[node] * np.where(self.aged(night), 0.96, 1.0)
            value = np.array(typical)[which] * factor**better * np.exp(self.random.normal(0, 0.015, len(node)))
            columns = self.columns(index) | {
                "metric": _same(metric, len(node)),
                "value": pa.array(value),
                "unit": _take(pa.array(units), which),
                "labels": _labels(len(node), "direct_io", "true"),
            }
            yield pa.table([columns[name] for name in schema.names], schema=schema)

    def histograms(self) -> Iterator[pa.Table]:
        schema = TABLES["histograms"].schema
        kept = np.array([(self.fleet.last - night).days < self.fleet.histogram_nights for night in self.nights])
        ladder = np.concatenate([(64 + np.arange(64)) * 2**octave for octave in range(8, 16)]) / 1e9
        for case, metric, typical in HISTOGRAMS if kept.any() else ():
            ok = (self.outcome[:, :, [_CASES.index(case)], :] == 0) & kept[None, :, None, None]
            night, node, _, repeat = np.nonzero(ok.swapaxes(0, 1))
            index = (node, night, np.full(len(node), _CASES.index(case)), repeat)
            first = np.searchsorted(ladder, typical / self.speed[node]) - _BINS // 3
            bins = first[:, None] + np.arange(_BINS)
            shape = np.exp(-0.5 * ((np.arange(_BINS) - _BINS / 3) / 16) ** 2) * 60_000
            counts = self.random.poisson(shape, size=bins.shape) + 1
            struct = pa.StructArray.from_arrays([ladder[bins.ravel()], counts.ravel()], names=["value", "count"])
            columns = self.columns(index) | {
                "metric": _same(metric, len(node)),
                "unit": _same("s", len(node)),
                "labels": _labels(len(node), "direct_io", "true"),
                "bins": pa.ListArray.from_arrays(np.arange(0, bins.size + 1, _BINS, dtype=np.int32), struct),
            }
            yield pa.table([columns[name] for name in schema.names], schema=schema)

    def quarantine(self) -> Iterator[pa.Table]:
        """One measurement in 1,000 was not believed."""
        schema = TABLES["quarantine"].schema
        node, night, case, repeat = np.nonzero(self.random.random(self.outcome.shape) < 60 / 18 / 1000)
        index = (node, night, case, repeat)
        count = len(node)
        reason = self.random.integers(0, 2, count)
        reasons = pa.array(["expect_column_values_to_be_between: read_iops 0..1e7 1/s", "not finite"])
        columns = self.columns(index) | {
            "metric": _same("read_iops", count),
            "value": pa.array(np.full(count, 1e12)),
            "unit": _same("1/s", count),
            "labels": _labels(count, "direct_io", "true"),
            "reason": _take(reasons, reason),
        }
        yield pa.table([columns[name] for name in schema.names], schema=schema)

    def verdicts(self) -> Iterator[pa.Table]:
        """The checkpoint floor of every node and night."""
        schema = TABLES["verdicts"].schema
        node, night = np.nonzero(np.ones((self.fleet.nodes, len(self.nights)), bool))
        case = np.full(len(node), _CASES.index("checkpoint"))
        measured = (self.outcome[node, night, case] == 0).any(axis=1)
        failed = self.random.random(len(node)) < 0.01
        verdict = np.where(~measured, 2, np.where(failed, 1, 0))
        observed = np.where(failed, 0.4e9, 1.9e9) * np.exp(self.random.normal(0, 0.02, len(node)))
        columns = self.columns((node, night, case, np.zeros(len(node), np.int64))) | {
            "metric": _same("write_bandwidth", len(node)),
            "rule": _same("floor", len(node)),
            "verdict": _take(pa.array(["pass", "fail", "not_measured"]), verdict),
            "observed": pa.array(observed, mask=~measured),
            "expected": pa.array(np.full(len(node), FLOOR)),
            "unit": _same("B/s", len(node)),
            "reason": _take(pa.array(["", "below the floor", "no repeat was ok"]), verdict),
            "evidence": _same("{}", len(node)),
        }
        yield pa.table([columns[name] for name in schema.names], schema=schema)

    def runs(self) -> Iterator[pa.Table]:
        """One table per night: the order of the table's sort begins with the run."""
        schema = TABLES["runs"].schema
        for number in range(len(self.nights)):
            node, _, case, repeat = np.nonzero(np.ones_like(self.outcome[:, :1], bool))
            index = (node, np.full(len(node), number), case, repeat)
            outcome, count = self.outcome[index], len(node)
            empty = pa.array([], pa.string())
            columns = self.columns(index) | {
                "suite": _same("nightly", count),
                "trigger": _same("schedule", count),
                "note": _same("", count),
                "outcome": _take(pa.array(_OUTCOMES), outcome),
                "reason": _take(pa.array(_REASONS), outcome),
                "params": _labels(count, "runtime_s", "30"),
                "facts": _labels(count, "filesystem", "ext4"),
                "notes": pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), empty),
                "exit_status": pa.array((outcome == 1).astype(np.int32), mask=outcome > 1),
                "signal": pa.array(np.full(count, 15, np.int32), mask=outcome != 2),
                "timed_out": pa.array(outcome == 2),
                "duration_s": pa.array(30 + self.random.random(count)),
                "lease_wait_s": pa.array(np.zeros(count)),
                "peer": pa.nulls(count, pa.string()),
                "round": pa.nulls(count, pa.int32()),
            }
            yield pa.table([columns[name] for name in schema.names], schema=schema)

    def environments(self) -> Iterator[pa.Table]:
        schema = TABLES["environments"].schema
        night, first = np.arange(len(self.nights)), np.zeros(len(self.nights), np.int64)
        columns = self.columns((first, night, first, first)) | {
            "facts": _same('{"kernel": "6.1.0-32-amd64"}', len(night))
        }
        yield pa.table([columns[name] for name in schema.names], schema=schema)


def _of_metric(metric: str) -> tuple[list[int], list[str], list[float]]:
    found = [(i, u, v) for i, case in enumerate(_CASES) for name, u, v in CASES[case] if name == metric]
    cases, units, typical = zip(*found, strict=True)
    return list(cases), list(units), list(typical)


def _run(night: date) -> str:
    return keys.run_id(datetime(night.year, night.month, night.day, 2, tzinfo=UTC), f"generated {night}")


def _take(values: pa.Array, index: Indices) -> pa.Array:
    return values.take(pa.array(index))


def _same(text: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(text), count)


def _labels(count: int, key: str, value: str) -> pa.Array:
    offsets = np.arange(count + 1, dtype=np.int32)
    return pa.MapArray.from_arrays(offsets, _same(key, count), _same(value, count)).cast(LABELS)


def _hex(random: np.random.Generator, count: int, digits: int) -> pa.Array:
    """`count` strings of random hex digits, made without a Python loop."""
    text = _HEX[random.integers(0, 16, count * digits, dtype=np.uint8)]
    offsets = np.arange(0, count * digits + 1, digits, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))
