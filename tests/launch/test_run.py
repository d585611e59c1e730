"""A search that cannot be run gives one message and leaves nothing behind."""

import os
from pathlib import Path

import pytest

from ticket_search.errors import SpecError
from ticket_search.launch import preflight
from ticket_search.launch.run import run_search


def test_three_fields_that_are_incompatible_after_converting_epochs(search):
    spec = search(
        {
            "rewind_iteration": [0, 20],
            "training.batch_size": [32, 512],
            "training.iterations": [60, "1ep"],
        }
    )
    with pytest.raises(SpecError, match="20 is not before the end of training at iteration 2"):
        preflight.check(spec, local=True)


def test_impossible_resources_are_refused_and_leave_nothing_behind(search, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_check_resources", lambda spec: None)
    spec = search({"pruning_rate": [0.5]}, sampler="grid", trials=None)
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"cpus": 1000.0})})
    with pytest.raises(SpecError, match="no node has 1000 CPUs and 0 GPUs for a trajectory"):
        run_search(spec, tmp_path / "run", engine="inline")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_search_does_not_remove_another_search(search, tmp_path, monkeypatch):
    """A refused search that created runs/ does not remove what another search has put there in the meantime."""
    monkeypatch.setattr(preflight, "_check_resources", lambda spec: None)
    spec = search({"pruning_rate": [0.5]}, sampler="grid", trials=None)
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"cpus": 1000.0})})
    neighbor = tmp_path / "runs" / "other" / "search.yaml"

    def neighbor_moves_in(progress):
        neighbor.parent.mkdir()
        neighbor.touch()

    with pytest.raises(SpecError, match="no node has 1000 CPUs"):
        run_search(spec, tmp_path / "runs" / "mine", on_start=neighbor_moves_in, engine="inline")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "runs",
        "runs/other",
        "runs/other/search.yaml",
    ]


def test_an_interrupted_search_whose_directory_was_moved_does_not_make_it_again(search, tmp_path):
    spec = search({"pruning_rate": [0.5, 0.6]}, base={"pruning.max_levels": 1}, seeds=(0,), sampler="grid", trials=None)
    here, there = tmp_path / "here", tmp_path / "there"

    def move(progress, row):
        here.rename(there)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(spec, here, engine="inline", listener=move)
    assert not here.exists()
    assert run_search(spec, there, engine="inline").counts["completed"] == 2


def test_a_network_that_changes_the_working_directory_does_not_move_the_caller(search, tmp_path, monkeypatch):
    def leave(progress, row):
        os.chdir("/")

    spec = search({"pruning_rate": [0.5]}, base={"pruning.max_levels": 1}, seeds=(0,), sampler="grid", trials=None)
    monkeypatch.chdir(tmp_path)
    run_search(spec, "run", engine="inline", listener=leave)
    assert Path.cwd() == tmp_path
