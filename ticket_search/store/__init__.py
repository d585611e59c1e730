"""The level store, which saves the results of training runs, keyed by a digest of their inputs."""
