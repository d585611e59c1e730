"""The search over trajectories: the only folder that imports ray and optuna."""
