"""Train several levels of one architecture as one program, each in its own lane."""
