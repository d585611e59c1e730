"""Whether a ticket matches the dense network."""

#: Accuracies are counts over a split's size: 0.97 - 0.01 as binary fractions must still be 0.96.
_SLACK = 1e-9


def is_matching(val_accuracy: float, dense_val_accuracy: float, tolerance: float) -> bool:
    """Whether a ticket's validation accuracy is at most `tolerance` below its dense network's; never if one is NaN.

    Args:
        val_accuracy: of the ticket, in [0, 1].
        dense_val_accuracy: of the dense network of the same seed, in [0, 1].
        tolerance: in [0, 1).
    """
    return bool(val_accuracy >= dense_val_accuracy - tolerance - _SLACK)
