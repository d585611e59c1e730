"""The search itself: what to run next, what came of it, what to drop. The only folder that imports Optuna; no Ray."""
