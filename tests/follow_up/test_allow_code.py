"""Code named by somebody else's run directory or ticket is imported only if the user allows it."""

import dataclasses
import sys

import pytest
from helpers import in_process

import ticket_search
from ticket_search.cli.running import resume_command
from ticket_search.config.imports import user_code
from ticket_search.errors import SpecError
from ticket_search.lottery.finished import FinishedTrajectory
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.results.reading import load_results
from ticket_search.store.level_store import LevelStore

#: A module that creates a file when it is imported. Its function `make` builds the same network as `lenet_16`.
STRANGER = """
from collections import OrderedDict
from pathlib import Path
from torch import nn

Path(__file__).with_name("imported").touch()


def make(image_shape, classes):
    layers = {"flat": nn.Flatten(), "fc1": nn.Linear(64, 16), "relu": nn.ReLU(), "output": nn.Linear(16, 10)}
    return nn.Sequential(OrderedDict(layers))
"""


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Put the module ``stranger`` into the working directory; return a function that tells whether it was imported."""
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield (tmp_path / "imported").exists
    sys.modules.pop("stranger", None)


@pytest.fixture
def run_dir(finished_search):
    """A run directory whose search.yaml names ``stranger:make`` as its network."""
    spec = finished_search / "search.yaml"
    spec.write_text(spec.read_text().replace("name: lenet_16", "name: stranger:make"))
    return finished_search


def test_reading_a_run_directory_imports_nothing(run_dir, imported):
    for command in (["status"], ["tickets"], ["store"], ["store", "--keep-best", "3"], ["store", "--prune"]):
        said = in_process(command[0], run_dir, *command[1:])
        assert (said.returncode, said.stderr) == (0, "")
    assert in_process("pull", run_dir, "copy").returncode == 0
    assert not imported()


@pytest.mark.parametrize("command", ["resume", "confirm", "stability", "export"])
def test_a_command_that_would_import_code_is_refused_unless_allowed(run_dir, imported, command):
    results = load_results(run_dir)
    ticket = f"{results.levels['trajectory_id'][0]}/2"
    arguments = {"stability": [ticket], "export": [ticket, "out.safetensors"]}.get(command, [])
    said = in_process(command, run_dir, *arguments)
    assert said.returncode == 2
    assert said.stderr == (
        f"error: '{run_dir}' names code that is not part of ticket_search: 'stranger:make'; loading it would run that "
        "code. If you trust it, add --allow-code (in Python: allow_code=True)\n"
    )
    assert not imported()
    engine = [] if command == "export" else ["--engine", "inline"]
    in_process(command, run_dir, *arguments, "--allow-code", *engine)
    assert imported()


def test_the_printed_command_allows_the_code_that_it_needs(search):
    plain, own = search({"pruning_rate": [0.5]}), search({"model.name": ["lenet_8", "stranger:make"]})
    assert resume_command("run", plain) == "ticket-search resume run"
    assert resume_command("a b", own, "processes") == "ticket-search resume 'a b' --engine processes --allow-code"


@pytest.mark.parametrize("field", ["dataset.name", "model.name", "training.executor"])
def test_code_is_found_in_each_field_and_in_the_space(search, field):
    assert user_code(search({"pruning_rate": [0.5]})) == []
    assert user_code(search({"pruning_rate": [0.5]}, base={field: "a.b:c"})) == ["a.b:c"]
    assert user_code(search({field: ["a.b:c", "d:e"]}, base={field: "a.b:c"})) == ["a.b:c", "d:e"]


def test_code_is_found_in_the_task(search):
    spec = search({"pruning_rate": [0.5]}).model_copy(update={"task": "a:Task"})
    assert user_code(spec) == ["a:Task"]


@pytest.fixture
def ticket(trajectory, digits, tmp_path):
    """A ticket file that names ``stranger:make``. The ticket was found with ``lenet_16``, which is the same network."""
    spec, store = trajectory({"max_levels": 1}), LevelStore(tmp_path / "ticket_store")
    list(run_trajectory(spec, digits, store))
    found = FinishedTrajectory(spec, digits, store).ticket(1, "aa/1", {"density": 0.8})
    model = spec.model.model_copy(update={"name": "stranger:make"})
    path = tmp_path / "t.safetensors"
    path.write_bytes(dataclasses.replace(found, spec=found.spec.model_copy(update={"model": model})).to_bytes())
    return path


def test_a_ticket_imports_code_only_if_allowed(ticket, imported):
    with pytest.raises(
        SpecError, match=r"names code .*'stranger:make'; loading it would run that code.*allow_code=True"
    ):
        ticket_search.load_ticket(ticket)
    said = in_process("transfer", ticket, "--dataset", "digits", "--engine", "inline")
    assert said.returncode == 2
    assert f"'{ticket}' names code that is not part of ticket_search: 'stranger:make'" in said.stderr
    assert not imported()
    network = ticket_search.load_ticket(ticket, allow_code=True)
    assert imported()
    assert network.fc1.weight_mask.shape == (16, 64)


def test_transfer_of_a_ticket_whose_code_is_allowed(ticket, imported):
    said = in_process("transfer", ticket, "--dataset", "digits", "--seeds", 1, "--engine", "inline", "--allow-code")
    assert said.returncode == 0, said.stderr
    assert imported()
