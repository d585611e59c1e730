"""The engine on Ray. Only this folder imports ray."""

import os

# Ray reads these variables when it is imported or started. Values that the user has set are kept.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Tune need not save its state, because a search resumes from its own record of suggestions and tables.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # Otherwise Tune would let only one trial wait for its actor, and give it the actor of the first trial that ends, so
    # that short trajectories would leave most of a cluster unused. `nodes.Slots` limits the number of trials instead.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    # A result holds only our own report objects, in which Tune would otherwise search for its metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
