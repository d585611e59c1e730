"""Whether a ticket matches depends on the direction of the metric."""

import pytest

from ticket_search.tasks.metric import Metric

ACCURACY = Metric(name="accuracy", higher_is_better=True, unit="fraction of the images")
NATS = Metric(name="nats_per_character", higher_is_better=False, unit="nats")
NAN = float("nan")


@pytest.mark.parametrize(
    ("metric", "value", "dense", "tolerance", "matches"),
    [
        (ACCURACY, 0.9, 0.9, 0.0, True),
        (ACCURACY, 0.7, 0.8, 0.1, True),  # in floating point, 0.8 - 0.1 is 0.7000000000000001
        (ACCURACY, 0.8999, 0.9, 0.0, False),
        (ACCURACY, NAN, 0.9, 0.0, False),
        (ACCURACY, 0.9, NAN, 0.0, False),
        (NATS, 1.5, 1.5, 0.0, True),
        (NATS, 1.4, 1.5, 0.0, True),
        (NATS, 0.8, 0.7, 0.1, True),  # in floating point, 0.7 + 0.1 is 0.7999999999999999
        (NATS, 1.5001, 1.5, 0.0, False),
        (NATS, NAN, 1.5, 9.0, False),
        (NATS, 1.5, NAN, 9.0, False),
    ],
)
def test_matching_allows_only_for_floating_point_rounding(metric, value, dense, tolerance, matches):
    assert metric.matches(value, dense, tolerance) is matches


def test_a_lead_is_positive_if_the_value_is_better():
    assert (ACCURACY.lead(0.75, 0.5), ACCURACY.lead(0.5, 0.75)) == (0.25, -0.25)
    assert (NATS.lead(0.75, 0.5), NATS.lead(0.5, 0.75)) == (-0.25, 0.25)
