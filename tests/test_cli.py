"""Tests for what users and scripts see of a command: its output, its exit code and its files."""

import json
import shlex
import signal
import subprocess
import time
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from helpers import command, in_process, run_command
from rich.console import Console

from ticket_search.cli.display import print_tickets
from ticket_search.config.search import SearchSpec
from ticket_search.storage.folder import open_folder

ROOT = Path(__file__).parents[1]
SMALL = (
    "--set",
    "training.iterations=20",
    "--set",
    "pruning.max_levels=1",
    "--set",
    "space.rewind_iteration=[0, 10]",
)


@pytest.fixture(scope="module")
def finished(ray_address, tmp_path_factory):
    """The working directory of a small search run by the command, and the output of the command."""
    cwd = tmp_path_factory.mktemp("finished")
    said = run_command("run", "digits", "--trials", 4, "--address", ray_address, *SMALL, cwd=cwd)
    return cwd, said


def test_run_prints_a_line_per_trajectory_then_the_tickets_and_nothing_else(finished):
    _, said = finished
    plan, nodes, disk = said.stderr.splitlines()
    assert said.returncode == 0
    assert plan.endswith("each with 1 CPU and 1 thread")
    assert nodes.startswith("  1 node of ")
    assert disk.startswith("disk: about ")
    lines = said.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("completed" in line and "2 levels" in line for line in lines[:4])
    assert lines[-1] == "results: runs/digits (pd.read_parquet('runs/digits/levels'))"
    assert len(lines) <= 4 + 1 + 3 + 4 + 1  # lines for trajectories, title, header, tickets and results


def test_a_dry_run_prints_what_would_run_and_leaves_nothing(finished, ray_address, tmp_path):
    plan = finished[1].stderr
    said = in_process("run", "digits", "--trials", 4, "--address", ray_address, "--dry-run", *SMALL, cwd=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == plan
    assert list(tmp_path.iterdir()) == []
    over = in_process("run", "digits", "--dry-run", "--engine", "inline", "--set", "resources.cpus=1000", cwd=tmp_path)
    assert over.returncode == 2
    assert over.stderr.startswith("error: resources.cpus: 1000 is more than this machine has ")


def test_the_contents_of_the_run_directory(finished):
    run_dir = finished[0] / "runs" / "digits"
    folders = {path.name for path in run_dir.iterdir() if path.is_dir()}
    assert folders == {
        "levels",
        "trajectories",
        "curves",
        "layers",
        "controls",
        "early_bird",
        "events",
        "store",
        "tensorboard",
        "lock",
    }
    assert list((run_dir / "lock").iterdir()) == []
    levels = pd.read_parquet(run_dir / "levels")
    assert len(levels) == 8
    assert levels["val_accuracy"].between(0, 1).all()
    assert sorted(pd.read_parquet(run_dir / "trajectories")["seed"]) == [0, 0, 1, 2]
    assert sorted(path.name for path in (run_dir / "tensorboard").iterdir() if path.is_dir()) == sorted(
        set(levels["trajectory_id"])
    )


def test_status_and_tickets(finished_search):
    status = json.loads(in_process("status", finished_search, "--json").stdout)
    assert status["name"] == "x"
    assert status["running"] is False
    assert status["trials"] == 8
    assert status["trajectories"] == {"completed": 8}
    assert status["levels"] == 24
    tickets = json.loads(in_process("tickets", finished_search, "--json").stdout)
    levels = pd.read_parquet(finished_search / "levels")
    assert [t["ticket"] for t in tickets] == [f"{t['trajectory_id']}/{t['level']}" for t in tickets]
    assert {t["trajectory_id"] for t in tickets} == set(levels.query("matching and level > 0")["trajectory_id"])
    assert [t["density"] for t in tickets] == sorted(t["density"] for t in tickets)
    assert status["best"] == (tickets[0] if tickets else None)
    assert "8 completed; 8 planned" in in_process("status", finished_search).stdout
    plain = in_process("tickets", finished_search).stdout
    assert all(t["ticket"] in plain for t in tickets)


def test_resume_raises_the_number_of_trials(finished):
    cwd, _ = finished
    before = pd.read_parquet(cwd / "runs/digits/levels")
    said = in_process("resume", "runs/digits", "--trials", 5, "--engine", "inline", cwd=cwd)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[0].startswith("5/5 completed")
    after = pd.read_parquet(cwd / "runs/digits/levels")
    assert len(after) == 10
    pd.testing.assert_frame_equal(after.head(8), before)
    fewer = in_process("resume", "runs/digits", "--trials", 3, cwd=cwd)
    assert (fewer.returncode, fewer.stdout) == (2, "")
    assert fewer.stderr == "error: --trials 3 is less than the search's 5 trials; give at least 5\n"


def test_another_search_is_refused_and_nothing_changes(finished):
    cwd, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (cwd / "runs").rglob("*")}
    said = in_process("run", "digits", *SMALL, "--set", "search.tolerance=0.5", cwd=cwd)
    assert (said.returncode, said.stdout) == (2, "")
    assert f"{cwd}/runs/digits' contains another search ('digits', which differs in search.tolerance); " in said.stderr
    assert f"--store '{cwd}/runs/digits/store' to reuse the levels that both searches have in common" in said.stderr
    assert {path: path.stat().st_mtime_ns for path in (cwd / "runs").rglob("*")} == before


def test_an_interrupted_search_prints_the_command_that_resumes_it(tmp_path):
    """After SIGTERM, the exit code is 130. While the search runs, a second process is refused."""
    run = command("run", "digits", "--engine", "processes")
    driver = subprocess.Popen(run, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    levels = tmp_path / "runs/digits/levels/part-00000.parquet"
    deadline = time.monotonic() + 120
    while not levels.exists() or pd.read_parquet(levels).empty:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = in_process("resume", "runs/digits", cwd=tmp_path)
    assert second.returncode == 2
    assert f"is being run by process {driver.pid}" in second.stderr
    assert json.loads(in_process("status", "runs/digits", "--json", cwd=tmp_path).stdout)["running"] is True
    driver.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    _, err = driver.communicate(timeout=30)
    assert time.monotonic() - asked < 10
    assert driver.returncode == 130
    assert err.splitlines()[3:] == [
        "interrupted; finished work is kept. Resume with: ticket-search resume runs/digits --engine processes"
    ]
    trained = set(pd.read_parquet(tmp_path / "runs/digits/levels")["level_key"])
    status = in_process("status", "runs/digits", cwd=tmp_path).stdout
    assert "interrupted; resume with: ticket-search resume runs/digits --engine processes" in status
    assert trained


def test_a_failed_trajectory_makes_the_exit_code_3(tmp_path):
    (tmp_path / "my_network.py").write_text(
        "from torch import nn\n"
        "calls = 0\n"
        "def network(image_shape, classes):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls > 2:\n"  # the check before the start calls it once, and so does each trajectory
        "        raise ValueError('no more than one')\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    said = in_process(
        *("run", "digits", "--trials", 2, "--engine", "inline", *SMALL, "--set", "model.name=my_network:network"),
        cwd=tmp_path,
    )
    assert said.returncode == 3, said.stderr
    assert "2/2 failed" in said.stdout
    assert said.stderr.splitlines()[-1] == (
        "1 of 2 trajectories failed; their tracebacks are in the column error of runs/digits/trajectories"
    )
    trajectories = pd.read_parquet(tmp_path / "runs/digits/trajectories")
    assert "no more than one" in trajectories["error"].dropna().item()


BAD = {
    "unknown key": (["--set", "training.optimizer.rate=1"], "unknown key 'rate'"),
    "wrong type": (["--set", "training.batch_size=many"], "'many' is not valid"),
    "out of range": (["--set", "pruning.pruning_rate=1.5"], "1.5 is not valid"),
    "low >= high": (["--set", "space.pruning_rate={low: 0.6, high: 0.2}"], "low 0.6 must be less than high 0.2"),
    "empty list": (["--set", "space.strategy=[]"], "the list [] is empty"),
    "rewind past the end": (
        ["--set", "space.rewind_iteration=[0, 400]"],
        "400 is not before the end of training at iteration 400",
    ),
    "rewind past the end, in epochs": (
        ["--set", "training.iterations=1ep"],
        "100 is not before the end of training at iteration 33",
    ),
    "unknown dataset": (["--set", "dataset.name=imagenet"], "unknown dataset 'imagenet'; known: digits, mnist"),
    "unknown model": (["--set", "model.name=resnet"], "unknown model 'resnet' (did you mean 'resnet20'?)"),
    "unknown torchvision model": (
        ["--set", "model.name=torchvision/resnet19"],
        "'torchvision/resnet19' (did you mean 'torchvision/resnet18'?)",
    ),
    "unknown strategy": (["--set", "space.strategy=[local]"], "'local' is not valid"),
    "data absent": (["--set", "dataset.name=mnist", "--data-dir", "nowhere"], "nowhere"),
    "validation too large": (["--set", "dataset.validation=1437"], "1437"),
    "a GPU without one": (["--set", "resources.gpus=0.5"], "0.5 is more than this machine has (0)"),
    "no such key": (["--set", "serch.trials=1"], "unknown key 'serch' (did you mean 'search'?)"),
    "not KEY=VALUE": (["--set", "trials"], "'trials' is not KEY=VALUE"),
    "a list-less grid": (["--set", "search.sampler=grid"], "a grid needs a list"),
    "three channels": (["--set", "dataset.normalize={mean: [0, 0, 0], std: [1, 1, 1]}"], "do not fit the 1 channel of"),
    "output in a file": (["--output", "/etc/hostname/x"], "cannot write to '/etc/hostname/x'"),
    "store nowhere": (["--store", "/proc/x"], "cannot write to '/proc/x'"),
    "a cluster that is not there": (["--address", "127.0.0.1:1"], "cannot reach a Ray cluster at '127.0.0.1:1'"),
    "object storage": (["--output", "ftp://host/x"], "'ftp://host/x' cannot be opened: "),
    "no module": (["--set", "model.name=no_such_module:network"], "no_such_module"),
}


#: Cases that need a new process: here, torch may already have counted the GPUs, and Ray may already be connected.
ELSEWHERE = {"a GPU without one", "a cluster that is not there"}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(case, tmp_path):
    arguments, message = BAD[case]
    run = run_command if case in ELSEWHERE else in_process
    said = run("run", "digits", *arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (said.returncode, said.stdout) == (2, "")
    assert "rror: " in said.stderr
    assert message in said.stderr
    assert "Traceback" not in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_broken_yaml_names_the_line(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: x\nspace: [1, 2\n")
    said = in_process("run", "broken.yaml", cwd=tmp_path)
    assert said.returncode == 2
    assert "broken.yaml, line 3" in said.stderr
    missing = in_process("run", "no_such_search", cwd=tmp_path)
    assert missing.returncode == 2
    assert "'no_such_search'" in missing.stderr
    assert "digits, fashion_mnist_lenet, mnist_lenet" in missing.stderr


def test_damage_is_named(finished_search, tmp_path):
    (finished_search / "suggestions.jsonl").write_text('{"number": 1\n')
    said = in_process("resume", finished_search, cwd=tmp_path, RAY_ADDRESS="")
    assert (said.returncode, said.stdout) == (2, "")
    assert "suggestions.jsonl' is damaged" in said.stderr
    (finished_search / "levels/part-00000.parquet").write_bytes(b"PAR1")
    said = in_process("status", finished_search, cwd=tmp_path)
    assert (said.returncode, said.stdout) == (2, "")
    assert "levels/part-00000.parquet' is " in said.stderr
    assert "ticket-search resume " in said.stderr


def test_closing_the_output_pipe_does_not_end_the_search(tmp_path):
    run = command("run", "digits", "--trials", 3, "--engine", "inline", *SMALL)
    subprocess.run(
        ["bash", "-c", f"{shlex.join(run)} 2>&1 | head -1"], cwd=tmp_path, check=True, capture_output=True, timeout=240
    )
    assert list(pd.read_parquet(tmp_path / "runs/digits/trajectories")["status"]) == ["completed"] * 3


def test_a_directory_that_is_not_a_run_directory_is_refused(tmp_path):
    for name in ("status", "tickets", "resume"):
        said = in_process(name, tmp_path, cwd=tmp_path)
        assert said.returncode == 2
        assert "is not a run directory: it has no search.yaml" in said.stderr


def test_a_narrow_terminal_names_the_columns_that_it_leaves_out(finished_search):
    from ticket_search.analysis.tickets import tickets
    from ticket_search.results.reading import load_results
    from ticket_search.runs.directory import read_spec

    spec, best = read_spec(open_folder(finished_search)), tickets(load_results(finished_search))
    shown = {}
    for width in (80, 120):
        console = Console(file=StringIO(), width=width)
        print_tickets(console, best, spec, more="ticket-search tickets x")
        shown[width] = console.file.getvalue()
    assert shown[80].splitlines()[-1] == (
        "not shown: compression, test_accuracy, dense_test_accuracy; "
        "widen the terminal to 120 columns, or use --json: ticket-search tickets x --json"
    )
    assert "not shown" not in shown[120]
    assert "compression" in shown[120]


def test_status_of_a_grid_of_a_million_points_checks_none_of_them(finished_search, search, monkeypatch):
    million = {name: [i / 1001 for i in range(1, 1001)] for name in ("conv_layer_rate", "output_layer_rate")}
    spec = search(million, sampler="grid", trials=None)
    assert len(list(spec.corners())) < 3000
    (finished_search / "search.yaml").write_text(spec.to_yaml())
    monkeypatch.setattr(SearchSpec, "trajectory_at", lambda *_: pytest.fail("a point was checked"))
    assert "8 completed; 3000000 planned" in in_process("status", finished_search).stdout


def test_help_is_quick_and_names_the_commands(tmp_path):
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        said = run_command("--help", cwd=tmp_path)
        seconds.append(time.perf_counter() - started)
    assert all(f"\n  {command} " in said.stdout for command in ("run", "resume", "status", "tickets"))
    assert min(seconds) < 0.4


def test_the_search_of_the_demo_finds_a_matching_ticket_with_a_tenth_of_the_weights(tmp_path):
    said = in_process("run", "digits", "--trials", 6, "--engine", "inline", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    trajectories = pd.read_parquet(tmp_path / "runs/digits/trajectories")
    assert len(trajectories) == 6
    assert set(trajectories["seed"]) == {0, 1, 2}
    assert set(trajectories["strategy"]) == {"layerwise", "global"}
    assert trajectories["rewind_iteration"].nunique() >= 2
    best = json.loads(in_process("status", "runs/digits", "--json", cwd=tmp_path).stdout)["best"]
    assert best["density"] <= 0.10
    assert best["val_accuracy"] >= best["dense_val_accuracy"]
