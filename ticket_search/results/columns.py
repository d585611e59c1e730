"""The columns of every table, declared once: name, type, meaning. `figures` declares those of a level."""

from collections.abc import Mapping

from ticket_search.results import figures
from ticket_search.results.figures import CONFIGURATION, SEED, Column

_TRAJECTORY = Column(name="trajectory_id", type="string", meaning="names the configuration and the seed")
_LEVEL = Column(name="level", type="int32", meaning="0 = the dense network, n = after n prunings")
#: A placeholder for the search's own fields: one column for each, named as in the space.
SEARCHED = Column(name="", type="", meaning="one column per other field of the space, named as there")

_LEVEL_KEY = Column(
    name="level_key",
    type="string",
    meaning="names the computation; trajectories that share a level share its key",
)
_OUTCOME = (
    Column(
        name="status",
        type="string",
        meaning="`running`, `completed`, `stopped` (dropped early), `diverged`, `failed`",
    ),
    Column(name="reason", type="string", meaning="why it was dropped, diverged or failed, in one line"),
    Column(name="levels", type="int32", meaning="finished levels"),
    Column(
        name="score",
        type="double",
        meaning="log2 of the best compression at which the ticket still matches; 0 if only level 0 does",
    ),
    Column(name="sparsest_matching_density", type="double", meaning="null if no ticket matches"),
    Column(name="iterations", type="int64", meaning="summed over its levels, shared ones included"),
    Column(name="train_seconds", type="double", meaning="summed likewise"),
    Column(name="error", type="string", meaning="a failed trajectory's traceback"),
)
_LAYER = (
    Column(name="name", type="string", meaning="of the parameter"),
    Column(name="kept_weights", type="int64", meaning="weights of it that the mask keeps"),
    Column(name="weights", type="int64", meaning="all of its weights"),
    Column(name="density", type="double", meaning="kept / all"),
)
_CONTROL = (
    Column(name="level", type="int32", meaning="of the ticket"),
    Column(
        name="control",
        type="string",
        meaning="`random_reinit`, `random_mask` or `shuffled_mask`; of a level 0 that early-bird has ended, "
        "`dense`: the network trained to its end",
    ),
    Column(name="draw", type="int32", meaning="from 0"),
    Column(name="level_key", type="string", meaning="of this training"),
    Column(name="seed", type="int64", meaning="of the ticket"),
    Column(name="density", type="double", meaning="of the ticket"),
)
_MASK_DISTANCE = (
    Column(name="iteration", type="int64", meaning="of the later mask"),
    Column(name="earlier_iteration", type="int64", meaning="of the earlier mask"),
    Column(
        name="distance",
        type="double",
        meaning="the fraction of prunable weights that one mask keeps and the other does not",
    ),
)


def table_columns() -> Mapping[str, list[Column]]:
    """The columns of each table, in their order, with `SEARCHED` in place of the searched fields."""
    return {
        "levels": [_TRAJECTORY, _LEVEL_KEY, _LEVEL, *CONFIGURATION, SEED, *figures.FIGURES, SEARCHED],
        "trajectories": [_TRAJECTORY, *CONFIGURATION, SEED, SEARCHED, *_OUTCOME],
        "curves": [_TRAJECTORY, _LEVEL, *figures.CURVE_FIGURES],
        "layers": [_TRAJECTORY, _LEVEL, *_LAYER],
        "controls": [_TRAJECTORY, *_CONTROL, *(figure for figure in figures.FIGURES if figure.of_controls)],
        "early_bird": [_TRAJECTORY, *_MASK_DISTANCE],
    }
