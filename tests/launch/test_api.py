"""Tests for `ticket_search.run_search`, called as in a notebook."""

import subprocess
import sys

import pandas as pd
import pytest
import yaml
from helpers import in_process

import ticket_search
from ticket_search.config.loading import load_search
from ticket_search.errors import RunDirectoryError, SpecError

SEARCH = {
    "name": "small",
    "dataset": {"name": "digits", "validation": 300},
    "model": {"name": "lenet_8"},
    "training": {
        "optimizer": {"name": "adam", "lr": 0.01},
        "batch_size": 64,
        "iterations": 40,
        "evaluate_every": 20,
    },
    "pruning": {"max_levels": 2},
    "space": {"pruning_rate": [0.5, 0.3]},
    "seeds": [0],
    "search": {"sampler": "grid"},
}


def run(space, output, **arguments):
    return ticket_search.run_search(space, output, engine="inline", say=lambda line: None, **arguments)


def levels(results):
    return results.levels.drop(columns="train_seconds")


def test_a_dict_a_file_and_a_spec_are_the_same_search(tmp_path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SEARCH))
    one = run(SEARCH, tmp_path / "dict")
    assert isinstance(one, ticket_search.Results)
    assert list(one.trajectories["status"]) == ["completed"] * 2
    for name, space in {
        "path": tmp_path / "space.yaml",
        "str": str(tmp_path / "space.yaml"),
        "spec": load_search(tmp_path / "space.yaml"),
    }.items():
        pd.testing.assert_frame_equal(levels(run(space, tmp_path / name)), levels(one), check_exact=True)


def test_settings_have_the_names_of_the_command_line(tmp_path):
    results = run(SEARCH, tmp_path / "run", trials=1, settings={"pruning.max_levels": 1, "space.pruning_rate": [0.6]})
    assert list(results.levels["pruning_rate"]) == [0.6, 0.6]
    assert SEARCH["space"] == {"pruning_rate": [0.5, 0.3]}


def test_a_second_run_resumes_and_reports_each_trajectory_once(tmp_path):
    ended, said = [], []
    ticket_search.run_search(
        SEARCH, tmp_path / "run", engine="inline", trials=1, say=said.append, on_trajectory=ended.append
    )
    results = run(SEARCH, tmp_path / "run", on_trajectory=ended.append)
    assert [row["pruning_rate"] for row in ended] == [0.5, 0.3]
    assert not results.levels.duplicated(["trajectory_id", "level"]).any()
    assert said[0] == "plan: 1 trajectory at a time in this process, with 1 CPU and 1 thread"
    with pytest.raises(RunDirectoryError, match="contains another search"):
        run(SEARCH, tmp_path / "run", settings={"training.iterations": 60})


def test_bad_input_is_one_message(tmp_path):
    with pytest.raises(SpecError) as error:
        run(SEARCH | {"seeds": []}, tmp_path / "run")
    assert str(error.value).startswith("seeds: [] is not valid")
    with pytest.raises(SpecError, match="no search space 'digit': neither a file nor a search that ships"):
        run("digit", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_processes_do_not_rerun_a_script_without_a_main_guard(tmp_path):
    """`multiprocessing` would import the script in its workers and so start the search again; this engine does not."""
    (tmp_path / "script.py").write_text(
        "import ticket_search\n"
        f"results = ticket_search.run_search({SEARCH!r}, 'run', engine='processes', trials=1)\n"
        "print(len(results.trajectories))\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (SEARCH, {"say": None}, "say: None is not callable: give a function that takes one argument"),
        (SEARCH, {"on_trajectory": 3}, "on_trajectory: 3 is not callable: give a function that takes one argument"),
        ((name for name in SEARCH), {}, "space: <generator .* is not valid: give a file, the name of"),
        (None, {}, "space: None is not valid: give a file, the name of"),
        ({1: 2}, {}, r"space: \{1: 2\} is not valid"),
        (SEARCH | {"space": {"pruning_rate": iter([])}, "x": (n for n in "")}, {}, "space: cannot pickle 'generator'"),
        (
            SEARCH,
            {"settings": "a=b"},
            r"settings: 'a=b' is not valid: give a dict such as {'training.iterations': 500}",
        ),
        (SEARCH, {"settings": {5: 5}}, r"settings: \{5: 5\} is not valid: give a dict"),
        (SEARCH, {"output": ""}, "output: '' is not valid: give a path or 's3://bucket/path', or omit the argument"),
        (SEARCH, {"store": " "}, "store: ' ' is not valid: give a path"),
        (SEARCH, {"output": 5}, "output: 5 is not valid: give a path or 's3://bucket/path'"),
        (SEARCH, {"output": "a\0b"}, r"output: 'a\\x00b' is not valid: it contains a null character"),
        (SEARCH, {"data_dir": 5}, "data_dir: 5 is not valid: give a path"),
        (SEARCH, {"store": 5}, "store: 5 is not valid: give a path"),
        (SEARCH, {"address": 5}, "address: 5 is not valid: give the address of a Ray cluster"),
        (SEARCH, {"trials": "3"}, "search.trials: '3' is not valid: input should be a valid integer"),
        (SEARCH, {"engine": None}, "unknown engine None; known: inline, processes, ray"),
    ],
)
def test_an_argument_of_the_wrong_type_is_one_message(tmp_path, monkeypatch, space, arguments, message):
    monkeypatch.chdir(tmp_path)
    quiet = {"engine": "inline", "say": lambda line: None}
    with pytest.raises(SpecError, match=message):
        ticket_search.run_search(space, **(quiet | arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_working_directory_that_was_deleted_is_one_message(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SpecError, match="the working directory has been deleted; change into one that exists"):
        run(SEARCH, "run")
    for command in (["status", "run"], ["run", "digits", "--dry-run"], ["transfer", "x", "--dataset", "digits"]):
        said = in_process(*command)
        assert (said.returncode, said.stderr) == (
            2,
            "error: the working directory has been deleted; change into one that exists\n",
        )
