"""The level store, which saves the results of training runs under keys derived from their inputs."""
