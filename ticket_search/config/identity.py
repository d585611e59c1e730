"""Keys that identify computations.

Equal inputs have equal keys on every machine, and in all versions of this package with the same `ENGINE_VERSION`.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ticket_search.config.base import Spec
from ticket_search.config.older import with_older_sections
from ticket_search.config.pruning import Control, EarlyBirdSpec, PruningSpec
from ticket_search.config.trajectory import TrajectorySpec

#: The version of the numerical results. Every level key depends on it. Increase it whenever a change to the code makes
#: the same inputs produce different results, and whenever a default in a specification changes. (Fields at their
#: defaults are left out of keys, so that a new field does not change existing keys. As a result, a changed default does
#: not change them either.)
ENGINE_VERSION = 1
#: The properties of an executor that affect its numerical results. Two executors may produce results that differ in the
#: last bits.
ExecutorKey = Mapping[str, Any]
PLAIN_EXECUTOR: ExecutorKey = {"name": "plain", "width": 1}


def digest(value: Any) -> str:
    """Return a digest of the canonical JSON of plain data: 128 bits as 32 hexadecimal digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, such as ``"order", 3``. Seeds for different purposes are independent."""
    return int(digest([seed, *purpose])[:16], 16) >> 1


def canonical(spec: Spec, *, without: set[str] | None = None) -> dict[str, Any]:
    """Return plain data that identifies a specification: its fields, except those at their defaults."""
    return spec.model_dump(mode="json", exclude_defaults=True, exclude=without)


def trajectory_id(spec: TrajectorySpec) -> str:
    """Return the ID of a trajectory: 16 hexadecimal digits that identify its configuration and its seed.

    The trajectory's controls do not affect the ID.
    """
    plain = with_older_sections(canonical(spec, without={"controls"}))
    plain["dataset"].pop("download", None)
    return digest(["trajectory", plain])[:16]


def dense_key(
    spec: TrajectorySpec, *, data: str, network: str, task: str = "", executor: ExecutorKey = PLAIN_EXECUTOR
) -> str:
    """Return the level key of level 0.

    Args:
        spec: the resolved trajectory: all durations are in iterations, and ``dataset.normalize`` is filled in.
        data: the fingerprint of the data set.
        network: a digest of the source of a user's own network; "" for the networks of this package.
        task: a digest of the source of a user's own task; "" for the tasks of this package.
        executor: the key of the executor that trains the level.
    """
    default = TrajectorySpec.model_fields["task"].default
    return digest(
        {
            "engine": ENGINE_VERSION,
            **({} if spec.task == default else {"task": {"name": spec.task, "source": task}}),
            "executor": dict(executor),
            "data": data,
            "dataset": canonical(spec.dataset, without={"name", "path", "download"}),
            "model": canonical(spec.model),
            "network": network,
            "training": canonical(spec.training, without={"executor"}),
            "seed": spec.seed,
        }
    )


def pruned_key(parent: str, pruning: PruningSpec, level: int, executor: ExecutorKey | None = None) -> str:
    """Return the level key of level number `level`, which is obtained by pruning the level with key `parent`.

    The key leaves out fields that do not affect the level:

    - The limits `min_density` and `max_levels` decide which levels exist, not what they contain.
    - The ``global`` strategy ignores `conv_layer_rate`. It also ignores `output_layer_rate`, unless this rate is 0.
    - Target densities replace the pruning rate. The key includes only the targets of this level and of the next level,
      because the mask of the next level is stored in this level's entry.
    - If the level uses a ticket from the store, no pruning setting affects its mask.
    - The parent's key already depends on the early-bird settings. It also depends on the executor, unless this level
      uses a different executor.
    """
    start: dict[str, Any] = {"parent": parent} | ({} if executor is None else {"executor": dict(executor)})
    if pruning.ticket is not None:
        given = {"weights": pruning.ticket_weights, "rewind_iteration": pruning.rewind_iteration}
        return digest({**start, "ticket": pruning.ticket, **given})
    plain = _mask_fields(pruning, idle=set())
    if pruning.target_densities is None:
        return digest({**start, "pruning": plain})
    targets = list(pruning.target_densities[level - 1 : level + 1])
    return digest({**start, "pruning": plain, "target_densities": targets})


def early_bird_key(dense: str, early_bird: EarlyBirdSpec, pruning: PruningSpec) -> str:
    """Return the key of level 0 for a dense training run that early-bird may cut short.

    Without early-bird, the run would have the key `dense`. The returned key depends on how the first mask is computed,
    but not on how the mask is used.
    """
    plain = _mask_fields(pruning, idle={"rewind_iteration", "retrain", "reinit_kept", "reinit_pruned"})
    first = list((pruning.target_densities or ())[:1])
    watch = canonical(early_bird)
    return digest({"dense": dense, "early_bird": watch, "pruning": plain, "target_densities": first})


def _mask_fields(pruning: PruningSpec, idle: set[str]) -> dict[str, Any]:
    """Return the fields that affect a level's pruning and training, except the target densities and those in `idle`."""
    idle = idle | {"min_density", "max_levels", "target_densities", "early_bird"}
    if pruning.criterion == "large_final":
        pruning = pruning.model_copy(update={"criterion": "magnitude"})
    if pruning.strategy == "global":
        idle |= {"conv_layer_rate"} | ({"output_layer_rate"} if pruning.output_layer_rate else set())
    if pruning.target_densities is not None:
        idle |= {"pruning_rate"}
    return canonical(pruning, without=idle)


def control_key(ticket: str, control: Control, draw: int) -> str:
    """Return the level key of a control. `ticket` is the level key of the ticket that the control is compared with."""
    return digest({"ticket": ticket, "control": control, "draw": draw})


def copy_key(start: str, copy: int) -> str:
    """Return the store's key for a copy. Copies are training runs that differ only in their data order.

    Args:
        start: the level key of a ticket, or the key of the rewind weights that a dense network starts from.
        copy: the number of the copy, from 0.
    """
    return digest({"start": start, "copy": copy})


def rewind_key(dense: str, iteration: int) -> str:
    """Return the store's key for the weights of a dense network after `iteration` iterations.

    Args:
        dense: the dense network's level key.
        iteration: the number of iterations.
    """
    return digest({"rewind": dense, "iteration": iteration})
