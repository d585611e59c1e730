"""A run directory of an earlier version (``golden/version_1``, made by ``golden/make.py``) can be read and resumed.

If a test here fails, users can no longer use their own results and stores. Fix the code, never the files.
"""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from ticket_search import load_results
from ticket_search.config.identity import rewind_key
from ticket_search.lottery.level import from_entry
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.pruning.masks import kept_weights
from ticket_search.results.events import read_events
from ticket_search.results.tables import Tables
from ticket_search.runs.directory import check_same_search, read_run, read_spec
from ticket_search.search.driver import SearchDriver
from ticket_search.search.suggestions import Suggestion, SuggestionRecord
from ticket_search.storage.folder import open_folder
from ticket_search.store.level_store import LevelStore, decode

GOLDEN = Path(__file__).parent / "golden" / "version_1"
FIRST, SECOND = "68d19ba374057088", "9f303995e05f4dec"
LEVELS = {
    FIRST: [
        "133daa8215e728e31e3e90f37c206755",
        "812579d65a28d6f4ab6e3a907cfeb8be",
        "ed7d19da1d090b977c4d9a118e6d936c",
    ],
    SECOND: [
        "eb4f26e1e9fc4eac57bdaa03f4dccce3",
        "bd102e775d578e5793c5dce8199df066",
        "6a613aa03ac5bdf5f38f89078db7d12e",
    ],
}
FINAL_BIAS = [-0.006450802553445101, 0.014126264490187168, 0.057491376996040344, 0.08432113379240036]
REWIND_BIAS = [-0.03573121875524521, -0.051956187933683395, -0.031143026426434517, -0.024077171459794044]
MASK = [".###", ".#.#", "....", ".##.", "..#.", "..##", "#.##", "#.##", ".#..", "####"]
SUGGESTIONS = [
    Suggestion(number=0, values={"pruning_rate": 0.25, "dataset.augment": None}, seed=0, trajectory_id=FIRST),
    Suggestion(number=1, values={"pruning_rate": 0.5, "dataset.augment": {"crop": 1}}, seed=0, trajectory_id=SECOND),
]


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "run"))


@pytest.fixture
def nothing_is_trained(monkeypatch):
    def train(request):
        raise AssertionError("a level was trained, although the golden store contains it")

    monkeypatch.setattr("ticket_search.training.executors.plain.train", train)


def test_the_files_name_no_machine():
    assert json.loads(next((GOLDEN / "store" / "searches").iterdir()).read_text())["run_dir"] == "/runs/golden"
    places = (b"/home/", b"/root/", b"/tmp/", bytes(Path(__file__).parents[1]))
    for path in GOLDEN.rglob("*"):
        assert path.is_dir() or not any(place in path.read_bytes() for place in places)


def test_the_tables_are_read():
    results = load_results(GOLDEN)
    levels = results.levels.set_index(["trajectory_id", "level"])
    assert {t: list(levels.loc[t, "level_key"]) for t in (FIRST, SECOND)} == LEVELS
    assert list(levels["kept_weights"]) == [296, 222, 166, 296, 148, 74]
    assert list(levels["iterations"]) == [60, 55, 55, 60, 55, 55]
    assert list(levels["dataset.augment"].fillna("none")) == ["none"] * 3 + ['{"crop": 1}'] * 3
    ticket = levels.loc[SECOND, 2]
    assert (ticket["density"], ticket["compression"], ticket["pruning_rate"], ticket["strategy"]) == (
        *(0.25, 4.0, 0.5),
        "global",
    )
    assert (ticket["val_accuracy"], ticket["dense_val_accuracy"], ticket["matching"]) == (0.48, 0.41, True)
    assert ticket["test_loss"] == 1.4590623643663194
    assert list(results.trajectories["status"]) == ["completed"] * 2
    assert list(results.trajectories["sparsest_matching_density"]) == [166 / 296, 0.25]
    assert results.trajectories["error"].isna().all()
    assert results.curves.iloc[4].to_dict() == {
        "trajectory_id": FIRST,
        "level": 1,
        "iteration": 40,
        "train_loss": 1.1675692796707153,
        "val_loss": 1.0608578491210938,
        "val_accuracy": 0.6466666666666666,
        "val_metric": 0.6466666666666666,
    }
    assert list(results.layers["kept_weights"]) == [256, 40, 185, 37, 133, 33, 256, 40, 121, 27, 53, 21]
    assert list(pd.read_parquet(GOLDEN / "layers")["name"].unique()) == ["fc1.weight", "output.weight"]


def test_the_record_of_suggestions_is_read():
    assert SuggestionRecord(GOLDEN).read() == SUGGESTIONS


def test_the_events_are_read():
    events = read_events(GOLDEN)
    assert Counter(event["event"] for event in events) == {
        "trajectory_started": 2,
        "level_started": 6,
        "level_finished": 6,
        "trajectory_ended": 2,
    }
    assert [e["level_key"] for e in events if e["event"] == "level_finished" and e["trajectory_id"] == FIRST] == (
        LEVELS[FIRST]
    )


def test_the_search_and_its_run_are_read():
    folder = open_folder(GOLDEN)
    assert read_run(folder).run_id == "c6f5c91689374a7da78a76adc65229b6"
    spec = read_spec(folder)
    assert (spec.name, spec.planned_trials, spec.search.sampler) == ("golden", 2, "random")
    check_same_search(folder, spec)


def test_the_checksums_of_the_store_cover_the_file():
    """A checksum covers the whole file, with the digits of the checksum itself replaced by zeros."""
    entries = sorted((GOLDEN / "store").glob("??/*.safetensors"))
    assert len(entries) == 8
    for path in entries:
        data = path.read_bytes()
        start = data.index(b'"sha256":"') + len(b'"sha256":"')
        checksum = data[start : start + 64]
        assert hashlib.sha256(data[:start] + b"0" * 64 + data[start + 64 :]).hexdigest().encode() == checksum
        decode(data)


def test_a_dense_level_is_read(copy):
    level = from_entry(LevelStore(copy / "store").load(LEVELS[FIRST][0]), LEVELS[FIRST][0], reused=True)
    assert (level.number, level.iterations, level.test_loss, level.next_mask) == (0, 60, 0.9213771396213107, None)
    assert [(p.iteration, p.val_metric) for p in level.curve] == [
        (20, 0.3933333333333333),
        (40, 0.5166666666666667),
        (60, 0.6433333333333333),
    ]
    assert list(level.mask) == ["fc1.weight", "output.weight"]
    assert {name: tuple(value.shape) for name, value in level.final_weights.items()} == {
        "fc1.weight": (4, 64),
        "fc1.bias": (4,),
        "output.weight": (10, 4),
        "output.bias": (10,),
    }
    assert level.final_weights["fc1.bias"].tolist() == FINAL_BIAS


def test_the_mask_of_a_ticket_is_read_bit_by_bit(copy):
    level = from_entry(LevelStore(copy / "store").load(LEVELS[SECOND][2]), LEVELS[SECOND][2], reused=True)
    assert (kept_weights(level.mask), kept_weights(level.next_mask)) == (74, 37)
    assert ["".join("#" if kept else "." for kept in row) for row in level.mask["output.weight"].tolist()] == MASK
    assert level.final_weights == {}


def test_rewind_weights_are_found_by_their_key(copy):
    entry = LevelStore(copy / "store").load(rewind_key(LEVELS[FIRST][0], 5))
    assert entry.record == {"iteration": 5}
    assert entry.tensors["fc1.bias"].tolist() == REWIND_BIAS


def test_a_replay_trains_nothing_and_yields_the_same_levels(copy, digits, nothing_is_trained):
    spec = read_spec(open_folder(copy))
    for suggestion in SuggestionRecord(copy).read():
        events = []
        levels = run_trajectory(
            spec.trajectory_at(suggestion.values, suggestion.seed),
            digits,
            LevelStore(copy / "store"),
            rewind_iterations=spec.rewind_iterations,
            log=lambda event, events=events, **fields: events.append((event, fields["level_key"])),
        )
        assert [level.key for level in levels] == LEVELS[suggestion.trajectory_id]
        assert events == [("level_reused", key) for key in LEVELS[suggestion.trajectory_id]]


def test_a_longer_trajectory_trains_only_the_new_level(copy, digits):
    """Level 3 of the second trajectory is new; its mask and its initial weights come from the golden store."""
    spec = read_spec(open_folder(copy), ("pruning.max_levels=3",))
    events = []
    log = lambda event, **fields: events.append((event, fields["level"]))  # noqa: E731
    suggestion = SuggestionRecord(copy).read()[1]
    levels = list(
        run_trajectory(
            spec.trajectory_at(suggestion.values, suggestion.seed), digits, LevelStore(copy / "store"), log=log
        )
    )
    assert events == [*(("level_reused", n) for n in range(3)), ("level_started", 3), ("level_finished", 3)]
    assert kept_weights(levels[3].mask) == 37


def test_resuming_it_leaves_nothing_to_do(copy):
    driven = SearchDriver(read_spec(open_folder(copy)), copy)
    assert driven.next() is None
    assert driven.progress.counts == {"running": 0, "completed": 2, "stopped": 0, "diverged": 0, "failed": 0}
    assert (driven.progress.best["trajectory_id"], driven.progress.best["density"]) == (SECOND, 0.25)


def test_with_more_trials_it_continues_after_the_last(copy, digits):
    """The search continues with the two remaining points, and both reuse level 0 from the store."""
    spec = read_spec(open_folder(copy), ("search.trials=4",))
    driven = SearchDriver(spec, copy)
    third, fourth = driven.next(), driven.next()
    assert (third.number, fourth.number, driven.next()) == (2, 3, None)
    assert len({third.trajectory_id, fourth.trajectory_id, FIRST, SECOND}) == 4
    assert SuggestionRecord(copy).read() == [*SUGGESTIONS, third, fourth]
    events = []
    log = lambda event, **fields: events.append((event, fields["level"]))  # noqa: E731
    for suggestion in (third, fourth):
        levels = run_trajectory(
            spec.trajectory_at(suggestion.values, suggestion.seed), digits, LevelStore(copy / "store"), log=log
        )
        assert next(levels).reused
    assert events == [("level_reused", 0)] * 2


def test_its_tables_can_be_extended(copy):
    before = load_results(copy)
    tables = Tables(copy, read_spec(open_folder(copy)).space)
    assert (FIRST, 2) in tables.levels
    assert (FIRST, 2) in tables.layers
    tables.trajectories.put(next(tables.trajectories.rows()) | {"trajectory_id": "new", "status": "running"})
    tables.flush()
    after = load_results(copy)
    pd.testing.assert_frame_equal(after.levels, before.levels, check_exact=True)
    pd.testing.assert_frame_equal(after.trajectories.head(2), before.trajectories, check_exact=True)
    assert list(after.trajectories["trajectory_id"]) == [FIRST, SECOND, "new"]
