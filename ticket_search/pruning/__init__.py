"""Choose the surviving weights: named tensors in, masks out. This package is independent of networks and training."""
