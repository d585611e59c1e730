"""A run directory of schema version 1 with controls and early-bird (made at commit caeb213) can be read and resumed."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from ticket_search import load_results
from ticket_search.launch.run import run_search
from ticket_search.results.events import read_events
from ticket_search.results.figures import ALWAYS_NAMED, SCHEMA_VERSION
from ticket_search.results.reading import Results
from ticket_search.results.schema import KEYS, version_of
from ticket_search.runs.directory import read_spec
from ticket_search.storage.folder import open_folder

GOLDEN = Path(__file__).parent / "golden" / "version_1_controls"
LATER = {
    "levels": ["task", "metric", "higher_is_better", "val_metric", "test_metric", "dense_val_metric"],
    "curves": ["val_metric"],
    "controls": ["val_metric", "test_metric", "early_stop_test_metric"],
}
#: Columns that are null, because no record of the golden store contains their values.
TRAINED_WITH = ["torch_version", "device", "threads", "ticket_search_version"]


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "run"))


def plain(results: Results):
    return {name: getattr(results, name) for name in KEYS}


def assert_defaults(results):
    levels, controls = results.levels, results.controls
    assert (set(levels["task"]), set(levels["metric"])) == ({"classification"}, {"accuracy"})
    assert levels["higher_is_better"].all()
    for name in ("val", "test", "dense_val", "dense_test", "early_stop_test"):
        assert list(levels[f"{name}_metric"]) == list(levels[f"{name}_accuracy"])
    for name in ("val", "test", "early_stop_test"):
        assert list(controls[f"{name}_metric"]) == list(controls[f"{name}_accuracy"])
    assert list(results.curves["val_metric"]) == list(results.curves["val_accuracy"])


def assert_training_environment_is_null(levels, controls):
    assert levels[[*TRAINED_WITH, *ALWAYS_NAMED]].isna().all(axis=None)
    assert controls[TRAINED_WITH].isna().all(axis=None)


def test_the_files_name_no_machine():
    places = (b"/home/", b"/root/", b"/tmp/", bytes(Path(__file__).parents[1]))
    for path in GOLDEN.rglob("*"):
        assert path.is_dir() or not any(place in path.read_bytes() for place in places)


def test_it_is_read_with_defaults_for_later_columns():
    results = load_results(GOLDEN)
    assert_defaults(results)
    assert_training_environment_is_null(results.levels, results.controls)
    assert len(results.levels) == 6
    assert sorted(results.controls["control"].unique()) == ["dense", "random_reinit", "shuffled_mask"]
    assert len(results.early_bird) > 0


def test_resuming_it_trains_nothing_and_upgrades_its_tables(copy):
    before, events = plain(load_results(copy)), len(read_events(copy))
    spec = read_spec(open_folder(copy))
    progress = run_search(spec, copy, engine="inline")
    assert (progress.done, progress.counts["completed"]) == (2, 2)
    assert len(read_events(copy)) == events
    for name, frame in plain(load_results(copy)).items():
        pd.testing.assert_frame_equal(frame, before[name], check_exact=True)
    for name in KEYS:
        assert version_of(pq.read_schema(copy / name / "part-00000.parquet")) == SCHEMA_VERSION
        plainly = pd.read_parquet(copy / name)
        assert set(LATER.get(name, [])) <= set(plainly.columns)
        assert plainly[LATER.get(name, [])].notna().all(axis=None)


def test_replaying_it_from_its_store_gives_the_same_rows(copy):
    """Deleted tables are rebuilt without any training, because every level is in the store."""
    before = plain(load_results(copy))
    for name in KEYS:
        shutil.rmtree(copy / name)
    run_search(read_spec(open_folder(copy)), copy, engine="inline")
    assert not [event for event in read_events(copy) if event["event"] == "level_started" and event["time"] > STARTED]
    for name, frame in plain(load_results(copy)).items():
        now_known = ["reused", *ALWAYS_NAMED]
        pd.testing.assert_frame_equal(
            frame.drop(columns=now_known, errors="ignore"), before[name].drop(columns=now_known, errors="ignore")
        )


#: The time of the last event in the golden search.
STARTED = max(event["time"] for event in read_events(GOLDEN))


def test_more_trials_are_added_to_the_old_rows(copy):
    spec = read_spec(open_folder(copy), ("search.trials=3",))
    run_search(spec, copy, engine="inline")
    results = load_results(copy)
    assert len(results.trajectories) == 3
    assert_defaults(results)
    old = load_results(GOLDEN).trajectories["trajectory_id"]
    levels, controls = ((frame, frame["trajectory_id"].isin(old)) for frame in (results.levels, results.controls))
    assert_training_environment_is_null(levels[0][levels[1]], controls[0][controls[1]])
    new = levels[0][~levels[1]]
    assert (set(new["model.name"]), set(new["dataset.name"])) == ({"lenet_4"}, {"digits"})
    trained = new["level_key"].map(lambda key: key not in set(load_results(GOLDEN).levels["level_key"]))
    assert list(new["device"].notna()) == list(trained)
