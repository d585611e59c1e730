"""Which weights survive: named tensors in, masks out. Knows no network, no training and no data."""
