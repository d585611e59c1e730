"""Choose trajectories to run, record their results and stop them early. Imports Optuna but not Ray."""
