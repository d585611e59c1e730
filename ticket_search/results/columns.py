"""Declares the columns of the tables: their names, types and meanings.

The columns for the figures of a level are declared in the module `figures`.
"""

from collections.abc import Mapping

from ticket_search.results import figures
from ticket_search.results.figures import CONFIGURATION, SEED, Column

_TRAJECTORY = Column(name="trajectory_id", type="string", meaning="identifies the configuration and the seed")
_LEVEL = Column(name="level", type="int32", meaning="number of times the network was pruned; 0 is the dense network")
#: A placeholder for the columns of those searched fields that have no declared column.
SEARCHED = Column(
    name="", type="", meaning="one column for each remaining field of the search space, named after the field"
)

_LEVEL_KEY = Column(
    name="level_key",
    type="string",
    meaning="identifies the computation; trajectories that share a level have the same key",
)
_OUTCOME = (
    Column(
        name="status",
        type="string",
        meaning="`running`, `completed`, `stopped` (by early stopping), `diverged`, `failed`",
    ),
    Column(name="reason", type="string", meaning="why the trajectory was stopped, diverged or failed (one line)"),
    Column(name="levels", type="int32", meaning="number of finished levels"),
    Column(
        name="score",
        type="double",
        meaning="log2 of the highest compression at which the ticket still matches; 0 if only level 0 does",
    ),
    Column(
        name="sparsest_matching_density",
        type="double",
        meaning="density of the sparsest matching ticket; null if no ticket matches",
    ),
    Column(name="iterations", type="int64", meaning="total over the trajectory's levels, including reused levels"),
    Column(name="train_seconds", type="double", meaning="total over the trajectory's levels, including reused levels"),
    Column(name="error", type="string", meaning="traceback of a failed trajectory, or what its last worker printed"),
)
_LAYER = (
    Column(name="name", type="string", meaning="name of the tensor in the network"),
    Column(name="kept_weights", type="int64", meaning="number of the tensor's weights that the mask keeps"),
    Column(name="weights", type="int64", meaning="total number of the tensor's weights"),
    Column(name="density", type="double", meaning="kept_weights / weights"),
)
_CONTROL = (
    Column(name="level", type="int32", meaning="level of the ticket"),
    Column(
        name="control",
        type="string",
        meaning="`random_reinit`, `random_mask` or `shuffled_mask`; at level 0, if early-bird ended it, `dense` (the "
        "dense network trained for all iterations)",
    ),
    Column(name="draw", type="int32", meaning="number of the draw, from 0"),
    Column(name="level_key", type="string", meaning="identifies the control's training run"),
    Column(name="seed", type="int64", meaning="seed of the ticket"),
    Column(name="density", type="double", meaning="density of the ticket"),
)
_MASK_DISTANCE = (
    Column(name="iteration", type="int64", meaning="iteration of the later mask"),
    Column(name="earlier_iteration", type="int64", meaning="iteration of the earlier mask"),
    Column(
        name="distance",
        type="double",
        meaning="fraction of the prunable weights that only one of the two masks keeps",
    ),
)


def table_columns() -> Mapping[str, list[Column]]:
    """Return the columns of each table in order, with `SEARCHED` in place of the searched fields."""
    return {
        "levels": [_TRAJECTORY, _LEVEL_KEY, _LEVEL, *CONFIGURATION, SEED, *figures.FIGURES, SEARCHED],
        "trajectories": [_TRAJECTORY, *CONFIGURATION, SEED, SEARCHED, *_OUTCOME],
        "curves": [_TRAJECTORY, _LEVEL, *figures.CURVE_FIGURES],
        "layers": [_TRAJECTORY, _LEVEL, *_LAYER],
        "controls": [_TRAJECTORY, *_CONTROL, *(figure for figure in figures.FIGURES if figure.of_controls)],
        "early_bird": [_TRAJECTORY, *_MASK_DISTANCE],
    }
