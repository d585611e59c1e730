"""The level store, which holds results of trainings under keys derived from their inputs."""
