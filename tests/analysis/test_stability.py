from xml.etree import ElementTree

import pandas as pd
import pytest

from ticket_search.analysis.stability import barriers, plot, stability_table


def lines(*arms):
    """Return a table of errors along lines between copies; each test error is 0.1 above the validation error.

    Each arm is a tuple (arm, rewind iteration, first copy, second copy, validation errors along the line).
    """
    return pd.DataFrame(
        {"ticket": "aa/3", "arm": arm, "rewind_iteration": k, "density": 0.2 if arm == "ticket" else 1.0}
        | {"first": first, "second": second, "position": i / (len(errors) - 1), "val_error": e, "test_error": e + 0.1}
        for arm, k, first, second, errors in arms
        for i, e in enumerate(errors)
    )


THREE = lines(
    ("ticket", 0, 0, 1, [0.10, 0.12, 0.12]),
    ("ticket", 0, 0, 2, [0.10, 0.15, 0.14]),
    ("ticket", 0, 1, 2, [0.12, 0.10, 0.14]),
    ("dense", 0, 0, 1, [0.10, 0.50, 0.30]),
    ("dense", 500, 0, 1, [0.10, 0.10, 0.10]),
)


def test_a_barrier_is_the_greatest_error_less_the_mean_of_the_ends():
    found = barriers(THREE)
    assert found["val_error"].tolist() == pytest.approx([0.11, 0.12, 0.13, 0.20, 0.10])
    assert found["val_barrier"].tolist() == pytest.approx([0.01, 0.03, 0.01, 0.30, 0.0])
    assert found["test_error"].tolist() == pytest.approx([0.21, 0.22, 0.23, 0.30, 0.20])
    assert found["test_barrier"].tolist() == pytest.approx(found["val_barrier"].tolist())


def test_the_table_aggregates_the_pairs():
    table = stability_table(THREE)
    assert table["arm"].tolist() == ["ticket", "dense", "dense"]
    assert table["rewind_iteration"].tolist() == [0, 0, 500]
    assert table["copies"].tolist() == [3, 2, 2]
    assert table["val_barrier"].tolist() == pytest.approx([0.05 / 3, 0.30, 0.0])
    assert table["val_barrier_max"].tolist() == pytest.approx([0.03, 0.30, 0.0])
    assert table["verdict"].tolist() == ["stable", "unstable", "stable"]


@pytest.mark.parametrize(("top", "verdict"), [(0.119, "stable"), (0.121, "unstable")])
def test_stable_is_less_than_2_percent_on_the_validation_images(top, verdict):
    line = lines(("ticket", 0, 0, 1, [0.1, top, 0.1]))
    line["test_error"] = [0.0, 0.9 if verdict == "stable" else 0.0, 0.0]
    assert stability_table(line)["verdict"].tolist() == [verdict]


def test_a_diverged_copy_has_no_verdict_on_stability():
    nan = float("nan")
    some = [("dense", 0, 0, 1, [0.1, 0.1, 0.1]), ("dense", 0, 0, 2, [nan] * 3), ("ticket", 0, 0, 1, [0.1] * 3)]
    table = stability_table(lines(*some))
    assert table["verdict"].tolist() == ["diverged", "stable"]
    assert plot(lines(*some)).startswith(b"<?xml")


def test_the_plot_names_every_arm_and_is_the_same_every_time():
    image = plot(THREE)
    text = " ".join(ElementTree.fromstring(image).itertext())
    for said in (
        "ticket, density 0.2, rewound to 0",
        "dense network from iteration 0",
        "dense network from iteration 500",
        "of aa/3",
        "stability threshold",
    ):
        assert said in text
    assert plot(THREE) == image
