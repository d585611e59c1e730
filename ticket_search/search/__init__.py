"""Chooses what to run, records results and stops trajectories. Only this folder imports Optuna; no Ray."""
