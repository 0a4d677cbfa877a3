"""dcgm_profile: how busy the parts of each GPU are while something runs there (dcgmi dmon)."""

from pipelines.benchmark import Benchmark
from pipelines.benchmarks.dcgm_profile.fields import FIELDS
from pipelines.benchmarks.dcgm_profile.output import parse, required
from pipelines.benchmarks.dcgm_profile.params import Params, beside, case, command, cost
from pipelines.families import dcgm_tool

BENCHMARK = Benchmark(
    name="dcgm_profile",
    title="How busy the parts of each GPU are (dcgmi dmon)",
    caveat="It puts no load on anything: by itself it says what an idle GPU does. The shares are means over a sampling "
    "interval and over all SMs of a GPU: 0.5 may be half of them busy all the time, or all of them half of the time. "
    "Reading the counters may cost what it watches a few percent, and only one profiler can have them at a time. "
    "dcgmi prints no times; a sample's time is its number times the interval. Devices have DCGM's own numbers.",
    cadence="on demand",
    tool=dcgm_tool.TOOL,
    minimum_version=dcgm_tool.MINIMUM_VERSION,
    version_argv=dcgm_tool.VERSION_ARGV,
    install_hint=dcgm_tool.INSTALL_HINT,
    writes=False,
    source="https://docs.nvidia.com/datacenter/dcgm/latest/user-guide/feature-overview.html#profiling",
    params=Params,
    metrics=tuple(field.metric for field in FIELDS.values()),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=dcgm_tool.version,
    parse=parse,
    needs=frozenset({"gpu"}),
    companion=beside,
)
