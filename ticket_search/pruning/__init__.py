"""Compute masks from named tensors. This package is independent of networks and training."""
