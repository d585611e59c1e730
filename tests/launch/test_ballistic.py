"""The short form of ``make soak``; see tests/ballistic.py."""

import random

import ballistic
import pytest


@pytest.mark.parametrize("one_worker", [False, True], ids=["two_workers", "one_worker"])
def test_killed_at_random_moments_it_is_as_if_nothing_had_happened(one_worker, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(ballistic.make_space(one_worker, iterations=1500, size=6 if one_worker else 2))
    alone = ballistic.run_alone(space, tmp_path / "alone")
    tally = ballistic.bombard(space, tmp_path / "killed", 4, random.Random(int(one_worker)), window=(4.0, 11.0))
    assert tally.kills.total() > 0
    ballistic.check(tmp_path / "killed", alone, tally, one_worker=one_worker)
