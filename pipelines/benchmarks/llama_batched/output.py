"""What a raw output of llama-batched-bench says: the table of throughput and latency, and its best point."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from pipelines.benchmarks.llama_batched.params import Params
from pipelines.errors import UnknownOutput
from pipelines.families import asked, llama_tool
from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Unit

_TABLE_ROW = re.compile(r"\|" + r"\s*(\d{1,9})\s*\|" * 4 + r"\s*(\d{1,9}\.\d{1,6})\s*\|" * 6)
_TABLE_COLUMNS = ("pp", "tg", "pl", "n_kv", "t_pp", "speed_pp", "t_tg", "speed_tg", "t", "speed")
_NO_GPU = re.compile(r"no usable GPU found|compiled without support for GPU offload")
_ROUNDED_S = 0.0005 + 1e-9  # the table's times have three digits after the point
_AGREES = 0.01

Tokens = Annotated[StrictInt, Field(gt=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False, strict=True)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False, strict=True)]


class Row(BaseModel):
    """One row of `--output-format jsonl`, or of the table: so many requests of one shape at once.

    `t_pp` are the seconds until all prompts are read, `t_tg` those until all answers are generated, in steps of one
    token for each sequence. The speeds count the tokens of all sequences.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    pp: Tokens
    tg: Tokens
    pl: Tokens
    n_kv: Tokens
    t_pp: Seconds
    speed_pp: Positive
    t_tg: Seconds
    speed_tg: Positive
    t: Seconds
    speed: Positive
    is_pp_shared: StrictInt = 0
    is_tg_separate: StrictInt = 0
    n_threads: StrictInt | None = None  # of this and the next the table has one line for all rows, which is not read
    n_gpu_layers: StrictInt | None = None

    @property
    def prefill_s(self) -> float:
        """The speed has more digits than the time."""
        return self.pl * self.pp / self.speed_pp

    @property
    def decode_s(self) -> float:
        return self.pl * self.tg / self.speed_tg

    @property
    def inter_token_s(self) -> float:
        return self.decode_s / self.tg

    def is_consistent(self) -> bool:
        """Whether the speeds are those of separate prompts in these times."""
        times = ((self.prefill_s, self.t_pp), (self.decode_s, self.t_tg), (self.n_kv / self.speed, self.t))
        agree = all(abs(own - printed) <= _ROUNDED_S + _AGREES * printed for own, printed in times)
        alone = not self.is_pp_shared and not self.is_tg_separate
        return agree and alone and self.n_kv == self.pl * (self.pp + self.tg)


def required(_: Params) -> frozenset[str]:
    return frozenset(
        {
            "prefill_throughput",
            "decode_throughput",
            "total_throughput",
            "time_to_first_token",
            "inter_token_latency",
            "request_latency",
            "request_rate",
        }
    )


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt.

    Raises:
        UnknownOutput: llama-batched-bench ended well and printed something else than its rows.
    """
    params = asked.params(raw, Params, "llama-batched-bench")
    if isinstance(params, Parsed):
        return params
    interrupted = llama_tool.interrupted(raw, "llama-batched-bench")
    if not interrupted and (failed := llama_tool.failure(raw, "llama-batched-bench")):
        return Parsed(outcome=failed[0], reason=failed[1])
    if params.wants_gpu and (said := _NO_GPU.search(raw.stderr)):
        return Parsed(outcome=Outcome.CONFIG, reason=f"a GPU was asked for, and llama-batched-bench said: {said[0]}")
    rows = _counted(tuple(_rows(raw.stdout, params)), params, raw.argv)
    if not rows and not interrupted:
        raise UnknownOutput("llama-batched-bench", "rows of the requests that were asked", raw.stdout)
    missing = [str(number) for number in params.sequences if number not in rows]
    measurements = tuple(_measurements(params, tuple(rows.values()), complete=not missing))
    unmeasured = f"nothing was measured of {', '.join(missing)} parallel sequences" if missing else ""
    reason = "; ".join(filter(None, (interrupted, unmeasured)))
    return Parsed(outcome=Outcome.TRUNCATED if reason else Outcome.OK, reason=reason, measurements=measurements)


def _counted(rows: Sequence[Row], params: Params, argv: Sequence[str]) -> Mapping[int, Row]:
    """The last row of each number of sequences; where the first was asked twice, its first row is the warm-up."""
    counted = {row.pl: row for row in rows}
    first = params.sequences[0]
    if ",".join(map(str, params.rows)) in argv and sum(row.pl == first for row in rows) < 2:
        counted.pop(first, None)
    return counted


def _rows(printed: str, params: Params) -> Iterator[Row]:
    """The rows that were asked; a line that is none of them is passed over."""
    for line in printed.splitlines():
        row = _row(line)
        if row is None or not row.is_consistent() or row.pl not in params.sequences:
            continue
        if (row.pp, row.tg) == (params.n_prompt, params.n_gen):
            yield row


def _row(line: str) -> Row | None:
    try:
        if table := _TABLE_ROW.fullmatch(line.strip()):
            whole, broken = table.groups()[:4], table.groups()[4:]
            values = (*map(int, whole), *map(float, broken))
            return Row.model_validate(dict(zip(_TABLE_COLUMNS, values, strict=True)))
        return Row.model_validate(json.loads(line)) if line.startswith("{") else None
    except (ValueError, RecursionError):  # pydantic's and json's own are ValueErrors
        return None


def _measurements(params: Params, rows: Sequence[Row], *, complete: bool) -> Iterator[Measurement]:
    for row in rows:
        labels = {"parallel": str(row.pl), **_labels(params, rows)}
        whole_s = row.prefill_s + row.decode_s
        yield _value("prefill_throughput", row.speed_pp, "tok/s", labels)
        yield _value("decode_throughput", row.speed_tg, "tok/s", labels)
        yield _value("total_throughput", row.pl * (row.pp + row.tg) / whole_s, "tok/s", labels)
        yield _value("time_to_first_token", row.prefill_s, "s", labels)
        yield _value("inter_token_latency", row.inter_token_s, "s", labels)
        yield _value("request_latency", whole_s, "s", labels)
        yield _value("request_rate", row.pl / whole_s, "1/s", labels)
    within = [row for row in rows if row.inter_token_s <= params.latency_limit_s]
    if complete and within:  # of half a table the best point is not known
        best = max(within, key=lambda row: row.speed_tg)
        labels = {"latency_limit_s": str(params.latency_limit_s), **_labels(params, rows)}
        yield _value("best_decode_throughput", best.speed_tg, "tok/s", labels)
        yield _value("best_parallel", best.pl, "1", labels)


def _labels(params: Params, rows: Sequence[Row]) -> Labels:
    """The rows name no model, so that these are what was asked; threads and layers as run, where a row says."""
    threads, layers = rows[0].n_threads, rows[0].n_gpu_layers
    given = {
        "model": params.model,
        "n_prompt": params.n_prompt,
        "n_gen": params.n_gen,
        "batch": params.batch,
        "ubatch": params.ubatch,
        "threads": params.threads if threads is None else threads,
        "n_gpu_layers": params.n_gpu_layers if layers is None else "auto" if layers < 0 else layers,
        "flash_attention": params.flash_attention,
        "type_k": params.type_k,
        "type_v": params.type_v,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _value(metric: str, value: float, unit: Unit, labels: Labels) -> Measurement:
    return Measurement(metric=metric, value=value, unit=unit, labels=labels)
