"""What can be asked of iperf3: one load between two nodes, and its name."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.records import Record

Direction = Literal["forward", "reverse", "both"]


class Params(Record):
    """One load between two nodes. None of it is a path, an address or free text."""

    protocol: Literal["tcp", "udp"] = Field(default="tcp", description="TCP for goodput, UDP for loss and jitter")
    streams: Annotated[int, Field(ge=1, le=128)] = Field(default=1, description="connections side by side")
    direction: Direction = Field(
        default="forward", description="forward: from client to server; reverse: back; both: at once"
    )
    duration_s: Annotated[int, Field(ge=1, le=3600)] = Field(default=5, description="seconds that are measured")
    omit_s: Annotated[int, Field(ge=0, le=60)] = Field(default=1, description="seconds before them, not counted")
    udp_rate: Annotated[int, Field(ge=1000, le=10**11)] = Field(
        default=125_000_000, description="of UDP, bytes per second and direction that are sent, all streams together"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.udp_rate < self.streams:
            raise ValueError("less than a byte per second for each stream")
        return self


def case(params: Params) -> str:
    """`tcp`, `tcp-reverse-j8`, `udp-r1000000`."""
    tokens: list[str] = [params.protocol]
    if params.direction != "forward":
        tokens.append(params.direction)
    if params.streams != 1:
        tokens.append(f"j{params.streams}")
    if params.protocol == "udp" and params.udp_rate != Params.model_fields["udp_rate"].default:
        tokens.append(f"r{params.udp_rate}")
    return "-".join(tokens)
