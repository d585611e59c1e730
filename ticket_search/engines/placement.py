"""Computes how many trajectories fit on each node, and checks that at least one node can run a trajectory."""

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from ticket_search.config.search import SearchSpec
from ticket_search.config.settings import ResourcesSpec
from ticket_search.errors import SpecError

Resources = Mapping[str, float]
#: The environment variable that sets how many seconds a search waits for its first node. An autoscaler can take ten
#: minutes to start a GPU node, because it boots a machine, installs drivers, and pulls a container image of several GB.
NODE_WAIT = "TICKET_SEARCH_NODE_WAIT_SECONDS"


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of node that an autoscaler may start.

    Attributes:
        name: the name of the type.
        resources: the resources of each node; empty if they are unknown until a node of this type has started.
        most: the number of additional nodes that may be started.
    """

    name: str
    resources: Resources
    most: int


def check(resources: ResourcesSpec, nodes: list[Resources], types: list[NodeType] | None) -> None:
    """Check that some existing node, or one that could be started, can run a trajectory.

    Args:
        resources: the resources of a trajectory.
        nodes: the resources of each node, as a mapping from resource names to amounts.
        types: the types of nodes that may be started; None if they are unknown.

    Raises:
        SpecError: there is no such node; the message lists the requested and the available resources.
    """
    if any(fitting_on(resources, node) for node in nodes) or types is None:
        return
    left = [kind for kind in types if kind.most]
    if any(not kind.resources or fitting_on(resources, kind.resources) for kind in left):
        return
    may_come = "; ".join(
        f"up to {kind.most} more nodes of type {kind.name} with {_has(kind.resources)}" for kind in left
    )
    may_come = f", and an autoscaler may start {may_come}" if may_come else ""
    raise SpecError(
        f"resources: no node has {_wanted(resources)} for a trajectory; available: {_list(nodes)}{may_come}"
    )


def node_wait_seconds() -> float:
    """Return how many seconds a search waits for the first node that can run a trajectory.

    Raises:
        SpecError: the value of the environment variable named by `NODE_WAIT` is not a number of seconds.
    """
    text = os.environ.get(NODE_WAIT, "900")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise SpecError(f"{NODE_WAIT}={text!r} in the environment is not valid: give a number of seconds, e.g. 900")
    return seconds


def waited_in_vain(resources: ResourcesSpec, nodes: list[Resources]) -> SpecError:
    """Return the error to raise if no node that can run a trajectory has joined in time."""
    return SpecError(
        f"resources: no node with {_wanted(resources)} for a trajectory joined within {node_wait_seconds():g} seconds; "
        f"available: {_list(nodes) or 'no nodes'}. Ask for less, or let the autoscaler start larger nodes; "
        f"the environment variable {NODE_WAIT} sets how many seconds to wait"
    )


def describe(spec: SearchSpec, nodes: list[Resources], types: list[NodeType] | None, lanes: int = 1) -> list[str]:
    """Describe how trajectories will be placed, as lines for the user.

    Args:
        spec: the search.
        nodes: see `check`.
        types: see `check`.
        lanes: the number of trajectories that a worker trains together.
    """
    resources = spec.resources
    fitting = lanes * sum(fitting_on(resources, node) for node in nodes)
    limits = {
        "limited by search.max_concurrent": spec.search.max_concurrent,
        "the search has no more": spec.planned_trials,
    }
    number, why = min([(fitting, ""), *((limit, why) for why, limit in limits.items() if limit is not None)])
    head = f"plan: {number} {'trajectory' if number == 1 else 'trajectories'} at a time"
    if why and number < fitting:
        head += f" ({why}; {fitting} would fit)"
    lines = [f"{head}, {_each(lanes)} with {share(resources)}"]
    of_lanes = f" x {lanes}" if lanes > 1 else ""
    for (what, fits), count in Counter((_has(node), fitting_on(resources, node)) for node in nodes).items():
        lines.append(f"  {_times(count)} {what}: {fits}{of_lanes}{' each' if count > 1 else ''}")
    for kind in types or []:
        if not kind.most:
            continue
        what, fits = _has(kind.resources), fitting_on(resources, kind.resources)
        line = f"  up to {kind.most} more nodes of type {kind.name} with {what} may be started"
        lines.append(f"{line}: {fits}{of_lanes} each" if kind.resources else line)
    if not fitting:
        lines.append(f"  waiting up to {node_wait_seconds():g} seconds for a node that can run a trajectory")
    return lines


def _each(lanes: int) -> str:
    return "each" if lanes == 1 else f"{lanes} to a worker that trains them together, each worker"


def fitting_on(resources: ResourcesSpec, node: Resources) -> int:
    """Return how many trajectories fit on a node that runs nothing else."""
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
    # Adding 1e-4, the unit in which Ray counts resources, corrects rounding errors: 0.3 / 0.1 is 2.9999999999999996.
    return min(int(node.get(name, 0) / amount + 1e-4) for name, amount in wanted.items() if amount)


def this_machine(resources: ResourcesSpec) -> Resources:
    """Return the resources of this machine. GPUs are counted only if needed, because counting imports torch."""
    return {"CPU": cpus(), "GPU": gpus() if resources.gpus else 0}


def cpus() -> int:
    """Return the number of CPUs that this process may use; a batch system or a container may restrict it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """Return the number of GPUs that this process may use."""
    import torch

    return torch.cuda.device_count()


def _list(nodes: list[Resources]) -> str:
    return "; ".join(f"{_times(count)} {what}" for what, count in Counter(map(_has, nodes)).items())


def _wanted(resources: ResourcesSpec) -> str:
    return f"{_of(resources.cpus, 'CPU')} and {_of(resources.gpus, 'GPU')}"


def _has(resources: Resources) -> str:
    if not resources:
        return "resources that are not known yet"
    return f"{_of(resources.get('CPU', 0), 'CPU')} and {_of(resources.get('GPU', 0), 'GPU')}"


def share(resources: ResourcesSpec) -> str:
    """Describe the resources of a trajectory, e.g. ``1 CPU, 1 thread and 1/4 of a GPU``."""
    share = Fraction(resources.gpus).limit_denominator(1000)
    gpus = f"{share} of a GPU" if 0 < resources.gpus < 1 else _of(resources.gpus, "GPU")
    given = [_of(resources.cpus, "CPU"), _of(resources.threads, "thread"), *([gpus] if resources.gpus else [])]
    return f"{', '.join(given[:-1])} and {given[-1]}"


def _of(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"


def _times(count: int) -> str:
    return "1 node of" if count == 1 else f"{count} nodes of"
