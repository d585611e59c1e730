"""Where trajectories run: how many fit on which node, what each gets, and whether any node could ever take one."""

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ray
import yaml

from ticket_search.config.search import ResourcesSpec, SearchSpec
from ticket_search.engines.ray.connection import own_processes
from ticket_search.errors import SpecError

#: Between two looks at how large the cluster is.
_LOOK_SECONDS = 5.0
#: Ray's cluster launcher puts it on the head; it names the types of nodes that the autoscaler may start.
_LAUNCHED = Path("~/ray_bootstrap_config.yaml")
#: The label with which an autoscaler says of which type a node is.
_TYPE_LABEL = "ray.io/node-group"

Resources = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of node that an autoscaler may start.

    Attributes:
        name: of the type.
        resources: of each; empty where it is known only once such a node is there.
        most: how many more there may be; 0 where there are all of them.
    """

    name: str
    resources: Resources
    most: int


class Slots:
    """How many trajectories fit on the cluster as it is now.

    Args:
        resources: of a trajectory.
        most: never more than this; None means as many as fit.
    """

    def __init__(self, resources: ResourcesSpec, most: int | None) -> None:
        self._resources = resources
        self._most = most
        self._count = 1
        self._look_after = 0.0
        self._has_fitted = False

    def count(self) -> int:
        """At least 1. On a cluster some more than fit: a trial that waits makes an autoscaler start a node.

        Raises:
            SpecError: no node could ever take a trajectory.
        """
        now = time.monotonic()
        if now >= self._look_after:
            nodes, types = _nodes(), node_types()
            fitting = sum(fitting_on(self._resources, node) for node in nodes)
            self._has_fitted = self._has_fitted or fitting > 0
            if not self._has_fitted:  # else a node was there, and may come back
                check(self._resources, nodes, types)
            wanted = fitting + (0 if own_processes() else _to_call_for(self._resources, fitting, types))
            self._count = max(1, wanted if self._most is None else min(wanted, self._most))
            self._look_after = now + _LOOK_SECONDS
        return self._count


def _to_call_for(resources: ResourcesSpec, fitting: int, types: list[NodeType] | None) -> int:
    """How many trajectories should wait for nodes to be started: as many as run, so that a cluster grows by doubling.

    No more than could be placed: what waits was suggested without knowing how those that run will end. Where it is not
    known what may be started, one.
    """
    able = [kind for kind in types or [] if fitting_on(resources, kind.resources)]
    # Ray would start machines with GPUs, too, for what needs none.
    able = [kind for kind in able if resources.gpus or not kind.resources.get("GPU")] or able
    if not able:
        return 1
    could = sum(kind.most * fitting_on(resources, kind.resources) for kind in able)
    return min(max(1, fitting), could)


def plan(spec: SearchSpec) -> list[str]:
    """How the search's trajectories will be placed on the Ray that is connected to, as lines for the user.

    Raises:
        SpecError: no node could ever take a trajectory; quotes what was asked for and what there is.
    """
    nodes, types = _nodes(), node_types()
    check(spec.resources, nodes, types)
    return describe(spec, nodes, types)


def check_now(resources: ResourcesSpec) -> None:
    """`check` on the Ray that is connected to."""
    check(resources, _nodes(), node_types())


def check(resources: ResourcesSpec, nodes: list[Resources], types: list[NodeType] | None) -> None:
    """Refuse what no node there is, and none that could be started, could give a trajectory.

    Args:
        resources: of a trajectory.
        nodes: what each of the nodes has, by the name of the resource.
        types: of the nodes that may be started; None where that is not known.

    Raises:
        SpecError: quotes what was asked for and what there is.
    """
    if any(fitting_on(resources, node) for node in nodes) or types is None:
        return
    left = [kind for kind in types if kind.most]
    if any(not kind.resources or fitting_on(resources, kind.resources) for kind in left):
        return
    there = "; ".join(f"{_times(count)} {what}" for what, count in Counter(map(_has, nodes)).items())
    may_come = "; ".join(f"up to {kind.most} more {kind.name} with {_has(kind.resources)}" for kind in left)
    there += f", and an autoscaler may start {may_come}" if may_come else ""
    wanted = f"{_of(resources.cpus, 'CPU')} and {_of(resources.gpus, 'GPU')}"
    raise SpecError(f"resources: no node has {wanted} for a trajectory; there are {there}")


def describe(spec: SearchSpec, nodes: list[Resources], types: list[NodeType] | None) -> list[str]:
    """A plan as lines for the user; the arguments are those of `check`."""
    resources = spec.resources
    fitting = sum(fitting_on(resources, node) for node in nodes)
    limits = {"search.max_concurrent": spec.search.max_concurrent, "there are no more": spec.planned_trials}
    number, why = min([(fitting, ""), *((limit, why) for why, limit in limits.items() if limit is not None)])
    head = f"plan: {number} {'trajectory' if number == 1 else 'trajectories'} side by side"
    if why and number < fitting:
        head += f" ({why}; {fitting} would fit)"
    lines = [f"{head}, each with {_share(resources)}"]
    for (what, fits), count in Counter((_has(node), fitting_on(resources, node)) for node in nodes).items():
        lines.append(f"  {_times(count)} {what}: {fits}{' each' if count > 1 else ''}")
    for kind in types or []:
        if not kind.most:
            continue
        each = f"{fitting_on(resources, kind.resources)} each" if kind.resources else "seen once they are there"
        lines.append(f"  up to {kind.most} more {kind.name} of {_has(kind.resources)}, which may be started: {each}")
    if not fitting:
        lines.append("  it waits for a node that can take one")
    return lines


def node_types() -> list[NodeType] | None:
    """The nodes that may be started besides those there are; None where that cannot be known, as on Kubernetes."""
    if own_processes() or "SLURM_JOB_ID" in os.environ:  # there no autoscaler runs, whatever file a home shares
        return []
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return None
    try:
        launched = yaml.safe_load(_LAUNCHED.expanduser().read_text())
        kinds = launched["available_node_types"].items()
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []
    head, most = launched.get("head_node_type"), launched.get("max_workers", 0)
    there = Counter(node["Labels"].get(_TYPE_LABEL) for node in _alive())
    if len(kinds) == 1:  # a list of machines: the head is one of them, and the others have no label
        there = Counter({head: len(_alive()) - 1})
    left = max(0, most - (len(_alive()) - 1))
    return [
        NodeType(
            name=name,
            resources=kind.get("resources") or {},
            most=max(0, min(left, kind.get("max_workers", most) - there[name])),
        )
        for name, kind in kinds
        if len(kinds) == 1 or name != head
    ]


def fitting_on(resources: ResourcesSpec, node: Resources) -> int:
    """How many trajectories fit on a node that runs nothing else."""
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
    # Ray counts in ten-thousandths.
    return min(int(node.get(name, 0) / amount + 1e-4) for name, amount in wanted.items() if amount)


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in _alive()]


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _has(resources: Resources) -> str:
    if not resources:
        return "resources that are not known yet"
    return f"{_of(resources.get('CPU', 0), 'CPU')} and {_of(resources.get('GPU', 0), 'GPU')}"


def _share(resources: ResourcesSpec) -> str:
    share = Fraction(resources.gpus).limit_denominator(1000)
    gpus = f"{share} of a GPU" if 0 < resources.gpus < 1 else _of(resources.gpus, "GPU")
    given = [_of(resources.cpus, "CPU"), _of(resources.threads, "thread"), *([gpus] if resources.gpus else [])]
    return f"{', '.join(given[:-1])} and {given[-1]}"


def _of(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"


def _times(count: int) -> str:
    return "1 node of" if count == 1 else f"{count} nodes of"
