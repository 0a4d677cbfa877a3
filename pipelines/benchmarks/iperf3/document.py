"""iperf3's JSON document, read into records. Keys that nothing here needs are ignored."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# What is not used may be below zero, or wrapped around at 2^64: so are packets that nobody counted for 3.12.
Count = Annotated[int, Field(ge=-(2**63), le=2**64)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]


class _Reading(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Sum(_Reading):
    """`sum_sent`, `sum_received`. `packets` and what follows are UDP's."""

    bytes: Count
    seconds: Number
    retransmits: Count | None = None
    packets: Count | None = None
    lost_packets: Count | None = None
    jitter_ms: Number | None = None


class Sender(_Reading):
    mean_rtt: Count | None = None  # microseconds; where the other side sends 0, or that of the acknowledgements
    sender: bool = True  # whether the client is


class Stream(_Reading):
    sender: Sender | None = None


class Cpu(_Reading):
    host_total: Number
    remote_total: Number


class End(_Reading):
    streams: tuple[Stream, ...] = ()
    sum_sent: Sum | None = None
    sum_received: Sum | None = None
    sum: Sum | None = None  # of UDP, before `sum_received` was there: 3.9
    sum_sent_bidir_reverse: Sum | None = None
    sum_received_bidir_reverse: Sum | None = None
    cpu_utilization_percent: Cpu | None = None


class TestStart(_Reading):
    blksize: Annotated[int, Field(gt=0, lt=2**31)]


class Start(_Reading):
    connected: tuple[Mapping[str, Any], ...] = ()
    connecting_to: Mapping[str, Any] | None = None  # of a client: a server has answered
    test_start: TestStart | None = None


class Document(_Reading):
    """What client and server print with `--json`. iperf3 3.12 exits with 0 whatever `error` says; 3.9 has none."""

    start: Start
    end: End = End()
    error: str | None = None


def read(printed: str) -> Document | None:
    start = printed.find("{")
    if start < 0:
        return None
    try:
        return Document.model_validate(json.JSONDecoder().raw_decode(printed, start)[0])
    except (ValueError, RecursionError):  # pydantic's and json's own are ValueErrors
        return None
