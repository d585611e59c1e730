"""Choose trajectories to run, record their results and stop them early. This package imports Optuna but not Ray."""
