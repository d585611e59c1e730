"""The search over trajectories: the only folder that imports ray and optuna."""

import os

# Ray reads these when it is imported or started; whoever has set them keeps his values.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Snapshots of Ray's own state: the record of suggestions and the tables are the authority.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # Tune would have one trial waiting for its actor at a time, and give it the actor of the first that ends: with
    # short trajectories most of a cluster would never be used. `placement.Slots` limits how many there are.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    # Payloads of our own type stand in a result; Tune would look through all of it for its metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
