"""What a search says, and leaves, when it cannot be run or has to stop."""

import shutil

import pandas as pd
import pytest
from helpers import finished_levels

from ticket_search.errors import SpecError, StorageError
from ticket_search.launch import preflight
from ticket_search.launch.run import run_search
from ticket_search.results.reading import load_results


@pytest.mark.parametrize("room", [20_000, 90_000])
def test_a_full_disk_is_one_message_and_what_was_finished_is_kept(ray_address, search, small_disk, room):
    """Full from the start on, and full half-way."""
    spec = search({"pruning_rate": [0.5, 0.6]}, seeds=(0, 1), sampler="grid", trials=None)
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - room))
    with pytest.raises(StorageError, match=r"cannot write '.*': No space left on device") as error:
        run_search(spec, small_disk / "run")
    assert "\n" not in str(error.value)
    assert not list(small_disk.rglob(".*"))
    for table in ("levels", "trajectories", "curves", "layers"):
        if (small_disk / "run" / table).exists():
            pd.read_parquet(small_disk / "run" / table)
    filler.unlink()
    assert run_search(spec, small_disk / "run").counts["completed"] == 4
    assert len(load_results(small_disk / "run").levels) == 12
    finished = finished_levels(small_disk / "run")
    assert set(finished.values()) == {1}


def test_three_fields_that_do_not_go_together_once_epochs_are_counted(search):
    spec = search(
        {
            "rewind_iteration": [0, 20],
            "training.batch_size": [32, 512],
            "training.iterations": [60, "1ep"],
        }
    )
    with pytest.raises(SpecError, match="20 is past the training of 2 iterations"):
        preflight.check(spec, local=True)


def test_what_no_machine_has_is_refused_and_nothing_is_left(ray_address, search, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_check_resources", lambda spec: None)
    spec = search({"pruning_rate": [0.5]}, sampler="grid", trials=None)
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"cpus": 1000.0})})
    with pytest.raises(SpecError, match="no node has 1000 CPUs and 0 GPUs for a trajectory"):
        run_search(spec, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_search_that_cannot_start_leaves_its_neighbour_alone(ray_address, search, tmp_path, monkeypatch):
    """Both found no runs/ when they started; the other has moved in by the time that this one is refused."""
    monkeypatch.setattr(preflight, "_check_resources", lambda spec: None)
    spec = search({"pruning_rate": [0.5]}, sampler="grid", trials=None)
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"cpus": 1000.0})})
    neighbour = tmp_path / "runs" / "other" / "search.yaml"

    def neighbour_moves_in(progress):
        neighbour.parent.mkdir()
        neighbour.touch()

    with pytest.raises(SpecError, match="no node has 1000 CPUs"):
        run_search(spec, tmp_path / "runs" / "mine", on_start=neighbour_moves_in)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "runs",
        "runs/other",
        "runs/other/search.yaml",
    ]
