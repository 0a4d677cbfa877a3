"""Whether real work runs on this machine, which no benchmark may run beside: asked as the setting FLEETMARK_BUSY says.

It is a setting of the machine, not a field of the inventory: a node gets its inventory with the plan, from the object
store, and whoever can write there must not be able to name commands that nodes run.

| setting | busy while |
|---|---|
| none | never |
| lock-file PATH | the file is there |
| flock PATH | somebody has a lock on the file, flock(2) |
| slurm [NODE] | Slurm has a job on the node, other than the one we run in (default NODE: the short host name) |
| kubernetes [NODE] | a pod on the node asks for GPUs or other devices (default NODE: the host name) |
| command ARGV... | the command ends with another status than 0 |

An answer that cannot be had is never taken for "free".
"""

import fcntl
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import ToolNotFound, ToolNotStarted
from pipelines.records import Record

_TIMEOUT_S = 20.0
_STILL_TRUE_S = 2.0  # between the end of a job and the beginning of the next
_SLURM_STATES = "RUNNING,SUSPENDED,COMPLETING,CONFIGURING"
_DEVICES = ("nvidia.com", "amd.com", "gpu.intel.com", "habana.ai")  # whose extended resources are accelerators' nodes'
_SLURM_ENVIRONMENT = ("SLURM_CONF",)
_KUBERNETES_ENVIRONMENT = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")


class Answer(Record):
    """What was seen, in a few words; empty where the machine is free."""

    state: Literal["free", "busy", "unknown"]
    what: str = ""

    @property
    def reason(self) -> str:
        """The sentence for a job that does not run because of it."""
        if self.state == "unknown":
            return f"whether real work runs here cannot be told: {self.what}"
        return f"busy with other work: {self.what}"


FREE = Answer(state="free")


class Way(Record):
    """A way of asking, as the setting says it."""

    kind: str
    words: tuple[str, ...] = ()


@dataclass
class Watch:
    """Asks before and after each job, but once between the end of one and the beginning of the next."""

    way: Way = field(default_factory=lambda: Way(kind="none"))
    seen: Answer = FREE  # the last one
    _asked_at: float | None = None

    def before(self) -> Answer:
        """The answer before a job: the one from after the last, if that has only just ended."""
        asked_at, self._asked_at = self._asked_at, None
        if asked_at is None or time.monotonic() - asked_at > _STILL_TRUE_S:
            self.seen = ask(self.way, os.environ)
        return self.seen

    def after(self) -> Answer:
        """The answer now."""
        self.seen, self._asked_at = ask(self.way, os.environ), time.monotonic()
        return self.seen


def parsed(text: str) -> Way:
    """The way that a setting names. Pure.

    Raises:
        ValueError: there is no such way, or it needs other words.
    """
    kind, *words = shlex.split(text) or ["none"]
    if kind not in _WAYS:
        raise ValueError(f"{kind!r} is no way to tell; known: {', '.join(_WAYS)}")
    fewest, most, _ = _WAYS[kind]
    if not fewest <= len(words) <= most:
        raise ValueError(f"{kind} takes {_takes(fewest, most)}, got {len(words)}")
    if kind in ("lock-file", "flock") and not Path(words[0]).is_absolute():
        raise ValueError(f"{kind} takes an absolute path, got {words[0]!r}")
    return Way(kind=kind, words=tuple(words))


def ask(way: Way, environ: Mapping[str, str]) -> Answer:
    """Whether real work runs here. Takes at most 20 seconds for each command; nothing is raised."""
    return _WAYS[way.kind][2](way.words, environ)


def slurm_jobs(listed: str, own: str | None) -> Answer:
    """What `squeue --format=%A|%T|%u` says, but for our own job. Pure. Source: squeue(1), Slurm 22.05."""
    for line in listed.splitlines():
        job, state, user = [*line.split("|", 2), "", ""][:3]
        if not user:
            return Answer(state="unknown", what=f"squeue printed {line[:200]!r}, expected JOB|STATE|USER")
        if job != own:
            return Answer(state="busy", what=f"slurm job {job} of {user}, {state.lower()}")
    return FREE


def device_pods(document: str, own: str) -> Answer:
    """What `kubectl get pods --output=json` says of pods that hold devices, but for our own. Pure.

    Devices are extended resources (`nvidia.com/gpu`, `nvidia.com/mig-1g.5gb`, `amd.com/gpu`) or resource claims.
    Source: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/
    """
    try:
        for pod in json.loads(document)["items"]:
            name, spec = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}", pod["spec"]
            if pod.get("status", {}).get("phase") in ("Succeeded", "Failed") or pod["metadata"]["name"] == own:
                continue
            if held := _devices(spec):
                return Answer(state="busy", what=f"kubernetes pod {name} with {held}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        problem = f"kubectl printed something else than a list of pods ({type(e).__name__}: {e})"
        return Answer(state="unknown", what=problem)
    return FREE


def _devices(spec: Mapping[str, Any]) -> str | None:
    if spec.get("resourceClaims"):
        return "a resource claim"
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        resources = container.get("resources", {})
        for name, count in {**resources.get("limits", {}), **resources.get("requests", {})}.items():
            if name.partition("/")[0] in _DEVICES and str(count) != "0":
                return f"{count} {name}"
    return None


def _none(_words: tuple[str, ...], _environ: Mapping[str, str]) -> Answer:
    return FREE


def _lock_file(words: tuple[str, ...], _environ: Mapping[str, str]) -> Answer:
    path = Path(words[0])
    try:
        path.lstat()
    except FileNotFoundError:
        return _nothing_in(path)
    except OSError as e:
        return Answer(state="unknown", what=f"lock file {path}: {e.strerror or e}")
    return Answer(state="busy", what=f"lock file {path} is there")


def _flock(words: tuple[str, ...], _environ: Mapping[str, str]) -> Answer:
    path = Path(words[0])
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return _nothing_in(path)
    except OSError as e:
        return Answer(state="unknown", what=f"lock file {path}: {e.strerror or e}")
    try:  # to have the lock for a moment is the only way to ask: /proc/locks hides those of other containers
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Answer(state="busy", what=f"{path} is locked")
    except OSError as e:
        return Answer(state="unknown", what=f"lock file {path}: {e.strerror or e}")
    finally:
        os.close(descriptor)
    return FREE


def _nothing_in(path: Path) -> Answer:
    """Free, if the file would be where it is looked for."""
    if not path.parent.is_dir():
        return Answer(state="unknown", what=f"lock file {path}: its directory is not there")
    return FREE


def _slurm(words: tuple[str, ...], environ: Mapping[str, str]) -> Answer:
    """All partitions, hidden ones too. Under PrivateData=jobs only an operator of Slurm sees the jobs of others."""
    node = words[0] if words else os.uname().nodename.partition(".")[0]
    argv = ("squeue", "--all", "--noheader", f"--nodelist={node}", f"--states={_SLURM_STATES}", "--format=%A|%T|%u")
    return _said(argv, environ, _SLURM_ENVIRONMENT, lambda out: slurm_jobs(out, environ.get("SLURM_JOB_ID")))


def _kubernetes(words: tuple[str, ...], environ: Mapping[str, str]) -> Answer:
    """The node is asked for first: of a node that there is not, Kubernetes says that it has no pods."""
    node = words[0] if words else os.uname().nodename.lower()
    patience = f"--request-timeout={_TIMEOUT_S / 2:.0f}s"
    known = _said(("kubectl", "get", "node", node, "--output=name", patience), environ, _KUBERNETES_ENVIRONMENT, _named)
    if known.state == "unknown":
        return known
    argv = ("kubectl", "get", "pods", "--all-namespaces", f"--field-selector=spec.nodeName={node}", "--output=json")
    own = os.uname().nodename  # a pod's host name is the pod's name
    return _said((*argv, patience), environ, _KUBERNETES_ENVIRONMENT, lambda out: device_pods(out, own))


def _named(printed: str) -> Answer:
    if printed.startswith("node/"):
        return FREE
    return Answer(state="unknown", what=f"kubectl printed {printed[:200]!r}, expected node/NAME")


def _command(words: tuple[str, ...], environ: Mapping[str, str]) -> Answer:
    from pipelines import process

    try:
        done = process.run(words, timeout_s=_TIMEOUT_S, environ=environ)
    except (ToolNotFound, ToolNotStarted) as e:
        return Answer(state="unknown", what=str(e))
    if done.exit_status is None or done.timed_out:
        return Answer(state="unknown", what=f"{words[0]} {_ended(done)}")
    if done.exit_status == 0:
        return FREE
    says = _first_line(done.stdout) or _first_line(done.stderr) or "nothing"
    return Answer(state="busy", what=f"{words[0]} ended with status {done.exit_status} and said {says}")


def _said(
    argv: tuple[str, ...], environ: Mapping[str, str], passed: tuple[str, ...], answer: Callable[[str], Answer]
) -> Answer:
    """What a command's output means, if it is one to rely on: it ended well, and complained of nothing."""
    from pipelines import process  # takes 70 ms to import, and settings need `parsed` alone

    try:
        done = process.run(argv, timeout_s=_TIMEOUT_S, environ=environ, passed=passed)
    except (ToolNotFound, ToolNotStarted) as e:
        return Answer(state="unknown", what=str(e))
    if done.exit_status != 0 or done.timed_out or "error" in done.stderr.lower():
        said = _first_line(done.stderr)
        return Answer(state="unknown", what=f"{argv[0]} {_ended(done)}{f': {said}' if said else ''}")
    return answer(done.stdout)


def _ended(done: Any) -> str:
    if done.timed_out:
        return f"did not answer within {_TIMEOUT_S:.0f} s"
    return f"ended with status {done.exit_status}" if done.signal is None else f"was ended by signal {done.signal}"


def _first_line(text: str) -> str:
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), "")


def _takes(fewest: int, most: float) -> str:
    if fewest == most:
        return "nothing more" if most == 0 else f"{fewest} word"
    return f"at least {fewest} word" if most > 1 else f"at most {most:.0f} word"


_Asked = Callable[[tuple[str, ...], Mapping[str, str]], Answer]
_WAYS: Mapping[str, tuple[int, float, _Asked]] = {  # fewest and most words after the name
    "none": (0, 0, _none),
    "lock-file": (1, 1, _lock_file),
    "flock": (1, 1, _flock),
    "slurm": (0, 1, _slurm),
    "kubernetes": (0, 1, _kubernetes),
    "command": (1, float("inf"), _command),
}
