"""Each level has exactly one ``level_finished`` event, even if the process is killed at the end of the level."""

import signal
import subprocess
import sys
from collections import Counter

import pytest
from helpers import finished_levels

from ticket_search.engines.job import make_job
from ticket_search.engines.worker import run_job
from ticket_search.search.reports import LevelReport
from ticket_search.storage.folder import open_folder

#: A script that runs a trajectory and kills itself at the end of the second level: after the entry is saved, after the
#: event is logged, or after the checkpoint is removed.
KILL = """
import os, pickle, signal, sys
from ticket_search.results.events import EventLog
from ticket_search.engines.worker import run_job
from ticket_search.store import level_store

moment, job = sys.argv[1], pickle.load(sys.stdin.buffer)
log, save, remove, passed = EventLog.log, level_store.LevelStore.save, level_store.Checkpoint.remove, []

def die(now):
    passed.append(now)
    if now == moment and passed.count(now) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

def log_then_die(self, event, **fields):
    log(self, event, **fields)
    if event == "level_finished":
        die("said")

def save_then_die(self, key, entry):
    save(self, key, entry)
    if "level" in entry.record:
        die("saved")

def remove_then_die(self):
    remove(self)
    die("removed")

EventLog.log, level_store.LevelStore.save, level_store.Checkpoint.remove = log_then_die, save_then_die, remove_then_die
list(run_job(job))
"""


@pytest.mark.parametrize("moment", ["saved", "said", "removed"])
def test_killed_around_the_end_of_a_level(search, tmp_path, moment):
    import pickle

    spec = search({"pruning_rate": [0.5]}, seeds=(0,), sampler="grid", trials=None)
    job = make_job(spec, 0, spec.trajectory_at({"pruning_rate": 0.5}, 0), open_folder(tmp_path), "")
    command = [sys.executable, "-c", KILL, moment]
    killed = subprocess.run(command, input=pickle.dumps(job), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    reports = [report for report in run_job(job) if isinstance(report, LevelReport)]
    assert [report.level["reused"] for report in reports] == [False, False, False]
    finished = finished_levels(tmp_path)
    assert finished == Counter(report.level["level_key"] for report in reports)
    for folder in ("leases", "checkpoints"):
        assert list((tmp_path / "store" / folder).glob("*")) == []
