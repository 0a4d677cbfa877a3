"""iperf3's JSON document, read into records. Keys that nothing here needs are ignored."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat


class _Reading(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Sum(_Reading):
    """`sum_sent`, `sum_received`. `packets` and what follows are UDP's."""

    bytes: Annotated[int, Field(ge=0)]
    seconds: NonNegativeFloat
    retransmits: int | None = None
    packets: int | None = None
    lost_packets: int | None = None
    jitter_ms: float | None = None


class Sender(_Reading):
    mean_rtt: int | None = None  # microseconds; 0 where the other side sends
    sender: bool = True


class Stream(_Reading):
    sender: Sender | None = None


class Cpu(_Reading):
    host_total: NonNegativeFloat
    remote_total: NonNegativeFloat


class End(_Reading):
    streams: tuple[Stream, ...] = ()
    sum_sent: Sum | None = None
    sum_received: Sum | None = None
    sum_sent_bidir_reverse: Sum | None = None
    sum_received_bidir_reverse: Sum | None = None
    cpu_utilization_percent: Cpu | None = None


class TestStart(_Reading):
    blksize: Annotated[int, Field(gt=0)]


class Start(_Reading):
    connected: tuple[Mapping[str, Any], ...] = ()
    connecting_to: Mapping[str, Any] | None = None  # of a client: a server has answered
    test_start: TestStart | None = None


class Document(_Reading):
    """What client and server print with `--json`. iperf3 3.12 exits with 0 whatever `error` says."""

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
