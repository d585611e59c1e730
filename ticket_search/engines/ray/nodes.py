"""The nodes of the Ray that is connected to: how many trajectories fit on them now, and what could be started."""

import os
import time
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import ray
import yaml

from ticket_search.config.search import SearchSpec
from ticket_search.config.settings import ResourcesSpec
from ticket_search.engines.placement import (
    NodeType,
    Resources,
    check,
    describe,
    fitting_on,
    node_wait_seconds,
    waited_in_vain,
)
from ticket_search.engines.ray.connection import own_processes

#: Between two looks at how large the cluster is.
_LOOK_SECONDS = 5.0
#: Ray's cluster launcher puts it on the head; it names the types of nodes that the autoscaler may start.
_LAUNCHED = Path("~/ray_bootstrap_config.yaml")
#: The label with which an autoscaler says of which type a node is.
_TYPE_LABEL = "ray.io/node-group"


class Slots:
    """How many trajectories fit on the cluster as it is now.

    Args:
        resources: of a trajectory.
        most: never more than this; None means as many as fit.

    Attributes:
        left_out: the ids of nodes that take no trajectory.
    """

    def __init__(self, resources: ResourcesSpec, most: int | None) -> None:
        self._resources = resources
        self._most = most
        self._count = 1
        self.left_out: tuple[str, ...] = ()
        self._look_after = 0.0
        self._has_fitted = False
        self._started = time.monotonic()

    def count(self) -> int:
        """At least 1. On a cluster some more than fit: a trial that waits makes an autoscaler start a node.

        Raises:
            SpecError: no node could ever take a trajectory, or none has for too long.
        """
        now = time.monotonic()
        if now >= self._look_after:
            nodes, types = _nodes(self.left_out), node_types()
            fitting = sum(fitting_on(self._resources, node) for node in nodes)
            self._has_fitted = self._has_fitted or fitting > 0
            if not self._has_fitted:  # else a node was there, and may come back
                check(self._resources, nodes, types)
                if now - self._started > node_wait_seconds():
                    raise waited_in_vain(self._resources, nodes)
            wanted = fitting + (0 if own_processes() else _to_call_for(self._resources, fitting, types))
            self._count = max(1, wanted if self._most is None else min(wanted, self._most))
            self._look_after = now + _LOOK_SECONDS
        return self._count

    def leave_out(self, node: str) -> bool:
        """Count a node no longer.

        Returns:
            Whether a node is left that can take a trajectory.
        """
        self.left_out = tuple({*self.left_out, node})
        self._look_after = 0.0
        return any(fitting_on(self._resources, left) for left in _nodes(self.left_out))


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


def _nodes(without: Container[str] = ()) -> list[Resources]:
    return [node["Resources"] for node in _alive() if node["NodeID"] not in without]


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
