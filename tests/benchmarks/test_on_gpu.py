"""The work queue for a GPU picks the next item, stops in time, resumes unfinished items and records all outcomes."""

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "on_gpu"
MACHINE = {"date": "2026-11-25 10:00", "gpu": "a GPU", "torch": "2.11.0", "cuda": "13.0"}
#: A script that counts to 150, one number every 0.03 s. If it is interrupted, the next run continues the count.
COUNT = """
import sys, time
from pathlib import Path
run_dir = Path(sys.argv[1])
(run_dir / "levels").mkdir(parents=True, exist_ok=True)
(run_dir / "store").mkdir(exist_ok=True)
file = run_dir / "levels" / "count"
count = int(file.read_text()) if file.exists() else 0
print("from", count, flush=True)
try:
    while count < 150:
        time.sleep(0.03)
        count += 1
except KeyboardInterrupt:
    sys.exit(130)
finally:
    file.write_text(str(count))
"""


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import work_queue

    monkeypatch.setattr(work_queue, "_SECONDS_TO_END", 0.4)
    return work_queue


@pytest.fixture
def take(tmp_path):
    """A function that works on the next item for at most `seconds` and returns the item's name and state."""

    def make(work, seconds=20.0):
        item = work.next()
        return item.name, work.work(item, seconds, MACHINE, cwd=tmp_path, env=dict(os.environ))

    return make


def item(queue, name, *codes):
    """Return an item of the queue; each of `codes` is a Python script and becomes one step."""
    steps = tuple(
        queue.Step(
            name=f"step{number}",
            command=lambda run_dir, code=code: (sys.executable, "-c", code, str(run_dir)),
            writes_tables=code == COUNT,
        )
        for number, code in enumerate(codes)
    )
    return queue.Item(name=name, question=f"what is {name}?", steps=steps)


def test_items_are_taken_in_their_order_until_all_are_done(queue, take, tmp_path):
    work = queue.WorkQueue([item(queue, "first", "print('one')", "print('two')"), item(queue, "last", "")], tmp_path)
    assert [work.state(each) for each in work._items] == ["new", "new"]
    assert [take(work), take(work)] == [("first", "done"), ("last", "done")]
    assert work.next() is None
    assert [(tmp_path / f"results/first/step{n}.txt").read_text() for n in (0, 1)] == ["one\n", "two\n"]


def test_a_call_ends_in_time_and_the_next_one_continues(queue, take, tmp_path):
    work = queue.WorkQueue([item(queue, "long", "print('once')", COUNT, "print('tables')")], tmp_path)
    started = time.monotonic()
    assert take(work, 3.0) == ("long", "partial")
    assert time.monotonic() - started < 3.0 + 1.0
    record = json.loads((tmp_path / "results/long.json").read_text())
    assert (record["state"], record["steps_done"]) == ("partial", ["step0"])
    reached = int((tmp_path / "results/long/levels/count").read_text())
    assert 0 < reached < 150
    assert take(work) == ("long", "done")
    said = (tmp_path / "results/long/step1.txt").read_text()
    assert said == f"from 0\nfrom {reached}\n"
    assert (tmp_path / "results/long/step0.txt").read_text() == "once\n"
    assert (tmp_path / "results/long/levels/count").read_text() == "150"
    assert not (tmp_path / "results/long/store").exists()
    assert (tmp_path / "runs/long/store").exists()
    # The record contains the date and the hardware of each call.
    record = json.loads((tmp_path / "results/long.json").read_text())
    assert (record["item"], record["question"], record["state"]) == ("long", "what is long?", "done")
    assert [call["state"] for call in record["calls"]] == ["partial", "done"]
    assert all(call.items() > MACHINE.items() for call in record["calls"])
    assert [call["seconds"] for call in record["calls"]] == [pytest.approx(3, abs=1), pytest.approx(4, abs=3)]


def test_a_failed_item_is_retried_after_all_others(queue, take, tmp_path):
    work = queue.WorkQueue([item(queue, "bad", "raise SystemExit('no data')"), item(queue, "good", "")], tmp_path)
    assert [take(work), take(work), take(work)] == [("bad", "failed"), ("good", "done"), ("bad", "failed")]
    assert (tmp_path / "results/bad/step0.txt").read_text() == "no data\n" * 2


def test_a_command_that_ignores_its_interrupt_is_killed(queue, take, tmp_path):
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    started = time.monotonic()
    assert take(queue.WorkQueue([item(queue, "deaf", deaf)], tmp_path), 1.4) == ("deaf", "partial")
    assert time.monotonic() - started < 1.4 + 1.0


def test_no_command_starts_without_enough_time(queue, take, tmp_path):
    assert take(queue.WorkQueue([item(queue, "one", "print('x')")], tmp_path), 0.3) == ("one", "partial")
    assert (tmp_path / "results/one/step0.txt").read_text() == ""


def run(*arguments):
    command = [sys.executable, str(FOLDER / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})


def test_the_command_lists_the_items_and_needs_a_gpu(tmp_path):
    listed = run("--list", "--out", tmp_path)
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [
        ["new", "cuda_tests"],
        ["new", "stacked"],
        ["new", "cifar10_conv2"],
        ["new", "cifar10_resnet20"],
    ]
    said = run("--out", tmp_path)
    assert (said.returncode, said.stderr) == (1, "this machine has no CUDA device; run it on one that has\n")
    for name in ("cuda_tests", "stacked", "cifar10_conv2", "cifar10_resnet20"):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / f"results/{name}.json").write_text('{"state": "done"}')
    assert run("--out", tmp_path).stdout == "all items are done\n"


def test_the_files_of_the_shipped_items_exist(monkeypatch):
    from ticket_search.config.loading import load_search

    monkeypatch.syspath_prepend(FOLDER)
    import items

    for each in items.ITEMS:
        for step in each.steps:
            words = step.command(Path("run"))
            files = [items.ROOT / word for word in words if word.endswith((".py", ".yaml"))]
            assert all(file.exists() for file in files)
            if step.name == "search":
                settings = tuple(word for before, word in pairwise(words) if before == "--set")
                spec = load_search(files[0], settings)
                assert len(spec.seeds) == 5
                assert spec.search.checkpoint_seconds == 30
