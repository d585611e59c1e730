"""Choose the weights that survive: named tensors in, masks out. Independent of networks, training and data."""
