"""Examines the connected Ray cluster: how many trajectories fit on its nodes, and which nodes may still be started."""

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
from ticket_search.engines.worker import lanes_of

#: How often to check the size of the cluster, in seconds.
_LOOK_SECONDS = 5.0
#: The file with the types of nodes that the autoscaler may start; Ray's cluster launcher writes it on the head node.
_LAUNCHED = Path("~/ray_bootstrap_config.yaml")
#: The node label in which an autoscaler records the type of the node.
_TYPE_LABEL = "ray.io/node-group"


class Slots:
    """Decides how many trajectories to run at a time, depending on the current size of the cluster.

    Args:
        resources: the resources of a trajectory.
        most: the maximum number of trajectories; None means as many as fit.

    Attributes:
        left_out: the ids of nodes that must not run trajectories.
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
        """Return how many trajectories should be running or waiting now, at least 1.

        On a cluster, this can be more than the number that fits, because an autoscaler starts nodes only for waiting
        trials.

        Raises:
            SpecError: no node will ever be able to run a trajectory, or no such node has joined in time.
        """
        now = time.monotonic()
        if now >= self._look_after:
            nodes, types = _nodes(self.left_out), node_types()
            fitting = sum(fitting_on(self._resources, node) for node in nodes)
            self._has_fitted = self._has_fitted or fitting > 0
            # Once a node has been large enough, wait for such a node to come back instead of raising an error.
            if not self._has_fitted:
                check(self._resources, nodes, types)
                if now - self._started > node_wait_seconds():
                    raise waited_in_vain(self._resources, nodes)
            wanted = fitting + (0 if own_processes() else _to_call_for(self._resources, fitting, types))
            self._count = max(1, wanted if self._most is None else min(wanted, self._most))
            self._look_after = now + _LOOK_SECONDS
        return self._count

    def leave_out(self, node: str) -> bool:
        """Stop placing trajectories on a node.

        Returns:
            Whether any of the remaining nodes can run a trajectory.
        """
        self.left_out = tuple({*self.left_out, node})
        self._look_after = 0.0
        return any(fitting_on(self._resources, left) for left in _nodes(self.left_out))


def _to_call_for(resources: ResourcesSpec, fitting: int, types: list[NodeType] | None) -> int:
    """Return how many trajectories should wait, so that the autoscaler starts nodes for them.

    This is the number of trajectories that fit on the cluster now, so the cluster doubles in size each time it grows.
    The number is limited to what the nodes that can still be started could run, because a waiting suggestion was made
    without the results of the running trajectories. If it is unknown which nodes can be started, one trajectory waits.
    """
    able = [kind for kind in types or [] if fitting_on(resources, kind.resources)]
    # Ray starts GPU nodes even for trajectories that need no GPU if too many of them wait for the other nodes. So count
    # GPU nodes only if the trajectories need a GPU or fit on no other type of node.
    able = [kind for kind in able if resources.gpus or not kind.resources.get("GPU")] or able
    if not able:
        return 1
    could = sum(kind.most * fitting_on(resources, kind.resources) for kind in able)
    return min(max(1, fitting), could)


def plan(spec: SearchSpec) -> list[str]:
    """Describe how trajectories will be placed on the connected Ray cluster, as lines for the user.

    Raises:
        SpecError: no node will ever be able to run a trajectory.
    """
    nodes, types = _nodes(), node_types()
    check(spec.resources, nodes, types)
    return describe(spec, nodes, types, lanes_of(spec))


def node_types() -> list[NodeType] | None:
    """Return the types of nodes that may still be started; None if they are unknown, as on Kubernetes."""
    # Neither a local cluster nor Slurm has an autoscaler, even if a shared home directory contains `_LAUNCHED`.
    if own_processes() or "SLURM_JOB_ID" in os.environ:
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
    if len(kinds) == 1:  # a fixed list of machines: the head has the same type as the workers, and nodes have no label
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
