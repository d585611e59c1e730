"""Names for computations: the same inputs have the same key, on every machine and in every year."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ticket_search.config.base import Spec
from ticket_search.config.older import with_older_sections
from ticket_search.config.pruning import Control, EarlyBirdSpec, PruningSpec
from ticket_search.config.trajectory import TrajectorySpec

#: Raise it when the engine would compute different numbers from the same inputs,
#: a changed default of a specification included: defaults are left out of the canonical form,
#: so that a field added later changes no older key.
ENGINE_VERSION = 1
#: What an executor's numbers depend on; another executor's may differ in the last bits.
ExecutorKey = Mapping[str, Any]
PLAIN_EXECUTOR: ExecutorKey = {"name": "plain", "width": 1}


def digest(value: Any) -> str:
    """128 bits, as 32 hexadecimal digits, of the canonical JSON of plain data."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """An independent 63-bit seed for each purpose of a run's seed, e.g. ``derive_seed(0, "order", 3)``."""
    return int(digest([seed, *purpose])[:16], 16) >> 1


def canonical(spec: Spec, *, without: set[str] | None = None) -> dict[str, Any]:
    """Plain data that identifies a specification: its fields, defaults left out."""
    return spec.model_dump(mode="json", exclude_defaults=True, exclude=without)


def trajectory_id(spec: TrajectorySpec) -> str:
    """16 hexadecimal digits that name a configuration and its seed, whatever controls are trained beside it."""
    plain = with_older_sections(canonical(spec, without={"controls"}))
    plain["dataset"].pop("download", None)
    return digest(["trajectory", plain])[:16]


def dense_key(
    spec: TrajectorySpec, *, data: str, network: str, task: str = "", executor: ExecutorKey = PLAIN_EXECUTOR
) -> str:
    """The level key of level 0.

    Args:
        spec: the trajectory, resolved: durations in iterations, ``dataset.normalize`` the constants in force.
        data: the fingerprint of the data set.
        network: a digest of the code of a user's own network; "" for the networks of this package.
        task: a digest of the code of a user's own task; "" for the tasks of this package.
        executor: of the one that trains it.
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
    """The level key of the level of that number, which prunes the level of key `parent`.

    How far a trajectory goes decides which levels exist, not what is in them; the ``global`` strategy has no layers'
    rates, unless the output layer is left whole; where levels have target densities there is no rate. Of the targets
    only the level's own counts, and the next one, whose mask its entry holds. Of a ticket that was found elsewhere that
    ticket counts. What early-bird does is in the parent's key. So is the executor, but where the level has another.
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
    """The level key of level 0 where `early_bird` may end the dense training of key `dense`.

    That depends on how the first mask is drawn, but not on what is done with it.
    """
    plain = _mask_fields(pruning, idle={"rewind_iteration", "retrain", "reinit_kept", "reinit_pruned"})
    first = list((pruning.target_densities or ())[:1])
    watch = canonical(early_bird)
    return digest({"dense": dense, "early_bird": watch, "pruning": plain, "target_densities": first})


def _mask_fields(pruning: PruningSpec, idle: set[str]) -> dict[str, Any]:
    """What decides how a level is pruned and trained, besides its parent and the target densities."""
    idle = idle | {"min_density", "max_levels", "target_densities", "early_bird"}
    if pruning.criterion == "large_final":
        pruning = pruning.model_copy(update={"criterion": "magnitude"})
    if pruning.strategy == "global":
        idle |= {"conv_layer_rate"} | ({"output_layer_rate"} if pruning.output_layer_rate else set())
    if pruning.target_densities is not None:
        idle |= {"pruning_rate"}
    return canonical(pruning, without=idle)


def control_key(ticket: str, control: Control, draw: int) -> str:
    """The level key of a control of the ticket that is trained in the level of key `ticket`."""
    return digest({"ticket": ticket, "control": control, "draw": draw})


def copy_key(start: str, copy: int) -> str:
    """The store's key of another training from the same start under another data order.

    Args:
        start: the level key of a ticket, or the key of the rewind weights that a dense network goes on from.
        copy: counted from 0.
    """
    return digest({"start": start, "copy": copy})


def rewind_key(dense: str, iteration: int) -> str:
    """The store's key of the weights after `iteration` iterations of the dense training of key `dense`."""
    return digest({"rewind": dense, "iteration": iteration})
