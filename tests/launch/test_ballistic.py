"""Short versions of ``make soak``; see tests/ballistic.py."""

import random
import signal
import subprocess
import time

import ballistic
import pytest
from by_hand import run_by_hand
from helpers import command, finished_levels

from ticket_search.config.loading import load_search
from ticket_search.launch.run import run_search


@pytest.mark.soak
def test_a_search_killed_with_all_its_processes_loses_nothing(tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(ballistic.make_space(False, iterations=100, size=1).replace("seeds: [0, 1, 2]", "seeds: [0]"))
    run_by_hand(load_search(space), tmp_path / "alone")
    run = command("run", space, "--output", tmp_path / "killed")
    with subprocess.Popen(run, start_new_session=True, stdout=subprocess.DEVNULL) as driver:
        while not finished_levels(tmp_path / "killed"):
            assert driver.poll() is None
            time.sleep(0.05)
        ballistic.shoot(driver, "group", random.Random(0))
    assert driver.returncode == -signal.SIGKILL
    run_search(load_search(space), tmp_path / "killed", engine="inline")
    ballistic.check(tmp_path / "killed", tmp_path / "alone", ballistic.Tally(), one_worker=False)


@pytest.mark.soak
@pytest.mark.parametrize("one_worker", [False, True], ids=["two_workers", "one_worker"])
def test_a_search_killed_at_random_moments_loses_nothing(one_worker, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(ballistic.make_space(one_worker, iterations=1500, size=6 if one_worker else 2))
    alone = ballistic.run_alone(space, tmp_path / "alone")
    tally = ballistic.bombard(space, tmp_path / "killed", 4, random.Random(int(one_worker)), window=(4.0, 11.0))
    assert tally.kills.total() > 0
    ballistic.check(tmp_path / "killed", alone, tally, one_worker=one_worker)
