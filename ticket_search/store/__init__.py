"""The level store: results of trainings, each under a key derived from its inputs."""
