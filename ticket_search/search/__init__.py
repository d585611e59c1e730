"""Chooses trajectories to run, records their results and stops them early. This package imports Optuna but not Ray."""
