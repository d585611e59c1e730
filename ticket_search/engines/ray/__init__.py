"""The engine that runs trajectories on Ray. Only this package imports ray."""

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
    # Tune need not save its state, because a search is resumed from its own tables and record of suggestions.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # By default, Tune lets only one trial wait for an actor, and gives it the actor of the first trial that ends. Short
    # trajectories would then leave most of a cluster unused. `nodes.Slots` limits the number of trials instead.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    # Without this setting, Tune would look for a metric in every result, but our results contain only reports.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
