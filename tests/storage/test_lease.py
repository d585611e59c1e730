"""A claim has at most one owner, which is a running process. Tested on a disk and on an S3 server."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from ticket_search.storage import lease as module
from ticket_search.storage.lease import Lease, Leases, Owner

HOLD = """
import sys, time
from ticket_search.storage.folder import open_folder
from ticket_search.storage.lease import Leases
with Leases(open_folder(sys.argv[1])).try_acquire("key"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def elsewhere():
    """The owner of a claim: a process on another machine."""
    return replace(module._this_process(), machine="elsewhere", host="far", pid=1)


def claim_of(folder, owner, name="key", token="a" * 12):
    folder.write(f"{name}.{token}.json", json.dumps(asdict(owner)).encode())


def test_one_process_holds_a_lease_and_others_learn_which(folder):
    leases = Leases(folder)
    with leases.try_acquire("key") as held:
        found = Leases(folder).try_acquire("key")
        assert found == leases.owner("key") == replace(module._this_process(), since=found.since)
        assert str(found).startswith(f"process {found.pid} on {found.host} (since 2")
        assert not held.is_lost
        assert leases.names() == ["key"]
    assert leases.owner("key") is None
    with leases.try_acquire("key") as again:
        assert again.broken == []
    assert folder.files() == []


def test_names_are_independent(folder):
    leases = Leases(folder)
    with leases.try_acquire("run"), leases.try_acquire("run2"), leases.try_acquire("ru"):
        assert leases.names() == ["ru", "run", "run2"]


def test_an_error_releases_a_lease(folder):
    with pytest.raises(RuntimeError, match="failed"), Leases(folder).try_acquire("key"):
        raise RuntimeError("the work failed")
    assert isinstance(Leases(folder).try_acquire("key"), Lease)


def test_only_one_of_many_threads_holds_a_lease_at_a_time(folder):
    holders, most, turns = [], [], []

    def work():
        leases = Leases(folder)
        for _ in range(3):
            while isinstance(lease := leases.try_acquire("key"), Owner):
                time.sleep(random.uniform(0.005, 0.01))
            with lease:
                holders.append(1)
                most.append(len(holders))
                time.sleep(0.01)
                holders.pop()
            turns.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(turns) == 12
    assert set(most) == {1}


def test_a_killed_process_holds_no_lease(folder):
    leases = Leases(folder)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert leases.owner("key").pid == process.pid
        process.kill()
        process.wait()
    assert leases.owner("key") is None
    assert leases.names() == ["key"]
    with leases.try_acquire("key") as held:
        assert [owner.pid for owner in held.broken] == [process.pid]
    assert folder.files() == []


def test_another_process_with_the_owners_pid_is_not_mistaken_for_it(folder):
    mine = module._this_process()
    claim_of(folder, replace(mine, started=mine.started - 1))
    assert Leases(folder).owner("key") is None
    Leases(folder).break_dead("key")
    assert folder.files() == []


def test_an_owner_elsewhere_is_alive_as_long_as_its_heartbeat_changes(folder, elsewhere, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    claim_of(folder, elsewhere)
    leases = Leases(folder)
    for _ in range(2):
        for _ in range(3):
            assert leases.try_acquire("key").host == "far"
            now[0] += 19.0
        time.sleep(1.1)  # S3 stores times with a resolution of one second
        folder.write("key.aaaaaaaaaaaa.beat", b"")
    for _ in range(4):
        assert isinstance(leases.try_acquire("key"), Owner)
        now[0] += 19.0
    with leases.try_acquire("key") as held:
        assert [owner.host for owner in held.broken] == ["far"]


def test_a_process_that_was_cut_off_does_not_break_the_claims_of_others(folder, elsewhere, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    claim_of(folder, elsewhere)
    leases = Leases(folder)
    assert isinstance(leases.try_acquire("key"), Owner)
    now[0] += 3600.0
    assert isinstance(leases.try_acquire("key"), Owner)


def test_an_unreadable_claim_counts_as_held(folder):
    folder.write("key.abc.json", b"{")
    assert str(Leases(folder).try_acquire("key")).startswith("process 0 on an unknown host")


def test_the_heartbeat_notices_that_its_claim_was_broken(folder, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    with Leases(folder).try_acquire("key") as held:
        time.sleep(0.5)
        claim = folder.files()[-1].name
        assert [file.name for file in folder.files()] == [claim.replace("json", "beat"), claim]
        (before, _) = folder.files()
        time.sleep(1.5)
        (after, _) = folder.files()
        assert after.modified > before.modified
        assert not held.is_lost
        folder.remove(claim)
        deadline = time.monotonic() + 5
        while not held.is_lost:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert folder.files() == []


def test_is_lost_checks_the_claim_after_a_long_suspension(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "_clock", lambda: now[0])
    with Leases(folder).try_acquire("key") as held:
        now[0] = 40.0
        folder.remove_all()
        assert not held.is_lost  # the claim has not expired yet
        now[0] = 100.0
        assert held.is_lost


def test_a_claim_broken_during_acquisition_is_not_held(folder, monkeypatch):
    leases = Leases(folder)
    look, looks = leases._claims, []

    def late(name):
        looks.append(name)
        if len(looks) == 2:
            folder.remove_all()  # as if another process broke the claim, did its work and released the lease
        return look(name)

    monkeypatch.setattr(leases, "_claims", late)
    assert isinstance(leases.try_acquire("key"), Owner)
    assert folder.files() == []


def test_the_claim_of_a_running_local_process_without_a_heartbeat_expires(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    claim_of(folder, replace(module._this_process(), pid=os.getppid(), started=module._start_of(os.getppid())))
    leases = Leases(folder)
    for _ in range(4):
        assert isinstance(leases.try_acquire("key"), Owner)
        now[0] += 19.0
    with leases.try_acquire("key") as held:
        assert [owner.pid for owner in held.broken] == [os.getppid()]


def test_a_process_that_may_not_be_signaled_counts_as_running(monkeypatch):
    def refuse(pid, number):
        raise PermissionError

    monkeypatch.setattr(module.os, "kill", refuse)
    monkeypatch.setattr(module, "_start_of", lambda pid: None)
    assert module.is_running(1, 5)
    monkeypatch.setattr(module, "_start_of", lambda pid: 7)
    assert module.is_running(1)  # its start time is unknown
    assert not module.is_running(1, 5)


def test_owner_reports_no_process_whose_heartbeat_stopped_long_ago(tmp_path, elsewhere):
    from ticket_search.storage.local import LocalFolder

    folder = LocalFolder(tmp_path)
    claim_of(folder, elsewhere)
    assert Leases(folder).owner("key").host == "far"
    (file,) = tmp_path.iterdir()
    os.utime(file, (time.time() - 3600,) * 2)
    assert Leases(folder).owner("key") is None
