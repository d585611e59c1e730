import os
import threading
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ticket_search.errors import RunDirectoryError, StorageError
from ticket_search.results.reading import load_results
from ticket_search.results.schema import schemas
from ticket_search.results.tables import Table, Tables

SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int32()), ("x", pa.float64())], {"ticket_search.schema_version": "1"})


def keyed(folder, capacity=3):
    return Table(folder, SCHEMA, ("id", "n"), capacity=capacity)


def grouped(folder, capacity=3):
    return Table(folder, SCHEMA, ("id",), capacity=capacity)


def row(n, x=0.0, id_="a"):
    return {"id": id_, "n": n, "x": x}


def parts(folder):
    return {p.name: pq.read_table(p).to_pylist() for p in sorted(folder.iterdir())}


def stamps(folder):
    return [p.stat().st_ino for p in sorted(folder.iterdir())]


def test_a_fresh_table_is_readable(tmp_path):
    keyed(tmp_path / "t")
    frame = pd.read_parquet(tmp_path / "t")
    assert len(frame) == 0
    assert frame.dtypes.astype(str).to_dict() == {"id": "str", "n": "int32", "x": "float64"}


def test_rows_fill_chunks_and_never_move(tmp_path):
    table = keyed(tmp_path)
    for n in range(7):
        table.put(row(n))
        table.flush()
    assert parts(tmp_path) == {
        "part-00000.parquet": [row(0), row(1), row(2)],
        "part-00001.parquet": [row(3), row(4), row(5)],
        "part-00002.parquet": [row(6)],
    }
    assert list(table.rows()) == [row(n) for n in range(7)]


def test_one_flush_may_fill_many_chunks(tmp_path):
    table = keyed(tmp_path)
    for n in range(7):
        table.put(row(n))
    assert (("a", 6) in table, ("a", 7) in table) == (True, False)
    table.flush()
    assert [len(rows) for rows in parts(tmp_path).values()] == [3, 3, 1]


def test_a_row_with_a_known_key_replaces_the_old_row_in_place(tmp_path):
    table = keyed(tmp_path)
    for n in range(7):
        table.put(row(n))
    table.put(row(2, 0.5))  # the old row is not yet on disk
    table.flush()
    before = stamps(tmp_path)
    table.put(row(1, 1.5))  # the old row is in a full chunk
    table.put(row(6, 2.5))  # the old row is in the last chunk
    table.put(row(7))
    table.flush()
    expected = [row(0), row(1, 1.5), row(2, 0.5), row(3), row(4), row(5), row(6, 2.5), row(7)]
    assert list(table.rows()) == expected
    assert [a == b for a, b in zip(before, stamps(tmp_path), strict=True)] == [False, True, False]
    assert list(keyed(tmp_path).rows()) == expected


def test_a_flush_with_nothing_new_touches_nothing(tmp_path):
    table = keyed(tmp_path)
    table.put(row(0))
    table.flush()
    before = stamps(tmp_path)
    table.flush()
    assert stamps(tmp_path) == before


def test_a_group_is_written_once_and_stays_in_one_chunk(tmp_path):
    table = grouped(tmp_path)
    for id_ in "abc":
        table.put_group([row(n, id_=id_) for n in range(2)])
    table.put_group([row(9, id_="a")])
    table.put_group([])
    table.flush()
    assert [len(rows) for rows in parts(tmp_path).values()] == [4, 2]
    again = grouped(tmp_path)
    before = stamps(tmp_path)
    for id_ in "abc":
        again.put_group([row(n, id_=id_) for n in range(2)])
    again.flush()
    assert stamps(tmp_path) == before
    with pytest.raises(ValueError, match="all rows of a group must have the same"):
        again.put_group([row(0, id_="d"), row(0, id_="e")])


def test_putting_the_same_rows_again_changes_nothing(tmp_path):
    table = keyed(tmp_path)
    for n in range(7):
        table.put(row(n, n / 3))
    table.flush()
    before = parts(tmp_path)
    again = keyed(tmp_path, capacity=5)  # the new capacity applies only to new rows
    for n in reversed(range(7)):
        again.put(row(n, n / 3))
    again.flush()
    assert parts(tmp_path) == before
    for n in range(7, 12):
        again.put(row(n))
    again.flush()
    assert [len(rows) for rows in parts(tmp_path).values()] == [3, 3, 5, 1]


def test_invalid_rows_are_refused(tmp_path):
    table = keyed(tmp_path)
    with pytest.raises(ValueError, match=r"has no column \['y'\]; its columns: \['id', 'n', 'x'\]"):
        table.put({**row(0), "y": 1})
    with pytest.raises(KeyError, match="'n'"):
        table.put({"id": "a"})
    table.put({"id": "a", "n": 0})
    assert list(table.rows()) == [{"id": "a", "n": 0, "x": None}]


def test_a_failed_flush_leaves_the_old_table_and_the_next_flush_writes_all_rows(tmp_path, monkeypatch):
    table = keyed(tmp_path)
    table.put(row(0))
    table.flush()
    replace, calls = os.replace, []

    def fail_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_second)
    for n in range(1, 7):
        table.put(row(n))
    with pytest.raises(StorageError, match="disk full"):
        table.flush()
    assert parts(tmp_path) == {"part-00000.parquet": [row(0), row(1), row(2)]}
    table.flush()
    assert list(table.rows()) == [row(n) for n in range(7)]


def test_partial_files_of_a_killed_process_are_ignored_and_removed_at_opening(tmp_path):
    table = keyed(tmp_path)
    table.put(row(0))
    table.flush()
    leftover = tmp_path / ".part-00000.parquet.0123.partial"
    leftover.write_bytes(b"PAR1 half")
    assert pd.read_parquet(tmp_path).to_dict("records") == [row(0)]
    assert list(keyed(tmp_path).rows()) == [row(0)]
    assert not leftover.exists()


def test_foreign_tables_are_refused(tmp_path):
    newer = SCHEMA.with_metadata({"ticket_search.schema_version": "4"})
    (tmp_path / "newer").mkdir()
    pq.write_table(newer.empty_table(), tmp_path / "newer" / "part-00000.parquet")
    with pytest.raises(
        RunDirectoryError, match=r"newer.* has schema version 4, but this ticket_search reads at most 3"
    ):
        keyed(tmp_path / "newer")

    (tmp_path / "foreign").mkdir()
    pq.write_table(SCHEMA.remove_metadata().empty_table(), tmp_path / "foreign" / "part-00000.parquet")
    with pytest.raises(RunDirectoryError, match="is not a table of ticket_search"):
        keyed(tmp_path / "foreign")

    Table(tmp_path / "other", SCHEMA.set(2, pa.field("y", pa.float64())), ("id",))
    with pytest.raises(RunDirectoryError, match="does not have the columns of this search; they differ in x, y"):
        keyed(tmp_path / "other")

    table = keyed(tmp_path / "lost")
    for n in range(10):
        table.put(row(n))
    table.flush()
    for chunk in range(3):
        (tmp_path / "lost" / f"part-{chunk:05}.parquet").unlink()
    with pytest.raises(RunDirectoryError, match=r"of 4 chunks, only \['part-00003.parquet'\] are left"):
        keyed(tmp_path / "lost")


def test_a_concurrent_reader_never_sees_an_error_or_a_duplicate_row(tmp_path):
    table = keyed(tmp_path, capacity=50)
    done, seen, problems = threading.Event(), [], []

    def read():
        while not done.is_set():
            try:
                frame = pd.read_parquet(tmp_path)
                seen.append(len(frame))
                if frame.duplicated(["id", "n"]).any() or (frame["x"].isna()).any():
                    problems.append(frame)
            except Exception as error:
                problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(400):
        table.put(row(n))
        table.put(row(n // 2, 1.0))
        table.flush()
    done.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert len(set(seen)) > 5
    assert pd.read_parquet(tmp_path)["n"].tolist() == list(range(400))


SPACE = {
    "pruning.pruning_rate": (0.2, 0.5),
    "training.optimizer.lr": (1e-3, 1),
    "dataset.augment": ({"crop": 4}, None),
}
CONFIGURATION = {
    "trajectory_id": "t",
    "pruning_rate": 0.2,
    "strategy": "global",
    "criterion": "magnitude",
    "rewind_iteration": 0,
    "seed": 1,
    "training.optimizer.lr": 1,
    "dataset.augment": {"crop": 4},
}
LEVEL = CONFIGURATION | {
    "level_key": "k",
    "level": 0,
    "kept_weights": 10,
    "prunable_weights": 10,
    "density": 1.0,
    "compression": 1.0,
    "val_loss": float("nan"),
    "val_accuracy": 0.5,
    "test_loss": 1.0,
    "test_accuracy": 0.5,
    "dense_val_accuracy": 0.5,
    "dense_test_accuracy": 0.5,
    "matching": True,
    "early_stop_iteration": 100,
    "early_stop_test_accuracy": 0.5,
    "iterations": 100,
    "train_seconds": 0.1,
    "reused": False,
}
TRAJECTORY = CONFIGURATION | {
    "status": "running",
    "reason": None,
    "levels": 1,
    "score": None,
    "sparsest_matching_density": None,
    "iterations": 100,
    "train_seconds": 0.1,
    "error": None,
}


def test_tables_round_trip_through_pandas(tmp_path):
    tables = Tables(tmp_path, SPACE)
    tables.trajectories.put(TRAJECTORY | {"trajectory_id": "u"})
    tables.trajectories.put(TRAJECTORY)
    tables.levels.put(LEVEL)
    point = {"trajectory_id": "t", "level": 0, "train_loss": None, "val_loss": 1.0, "val_accuracy": 0.5}
    tables.curves.put_group([point | {"iteration": 100}, point | {"iteration": 0}])
    layer = {"trajectory_id": "t", "level": 0, "kept_weights": 1, "weights": 2, "density": 0.5}
    tables.layers.put_group([layer | {"name": "fc2.weight"}, layer | {"name": "fc1.weight"}])
    tables.flush()
    tables.trajectories.put(TRAJECTORY | {"status": "completed", "score": 2.0, "sparsest_matching_density": 0.25})
    tables.flush()

    results = load_results(tmp_path)
    assert results.trajectories["trajectory_id"].tolist() == ["t", "u"]
    assert results.trajectories["status"].tolist() == ["completed", "running"]
    assert results.trajectories["sparsest_matching_density"].isna().tolist() == [False, True]
    assert results.trajectories["error"].isna().all()
    assert results.trajectories.dtypes[["score", "levels", "seed"]].astype(str).tolist() == [
        "float64",
        "int32",
        "int64",
    ]
    assert results.levels["dataset.augment"].tolist() == ['{"crop": 4}']
    assert results.levels["training.optimizer.lr"].tolist() == [1.0]
    assert results.levels["matching"].dtype == bool
    assert results.curves["iteration"].tolist() == [0, 100]
    assert results.layers["name"].tolist() == ["fc1.weight", "fc2.weight"]

    again = Tables(tmp_path, SPACE)
    assert [r["dataset.augment"] for r in again.trajectories.rows()] == [{"crop": 4}, {"crop": 4}]
    assert (("t", 0) in again.levels, ("t", 0) in again.curves, ("t", 1) in again.layers) == (True, True, False)


def test_a_new_run_directory_can_be_read(tmp_path):
    Tables(tmp_path / "lr=0.1", SPACE)
    results = load_results(str(tmp_path / "lr=0.1"))
    assert (len(results.levels), results.levels.columns.tolist()) == (0, schemas(SPACE)["levels"].names)


def test_other_directories_are_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"nowhere' is not a run directory: there is no such folder"):
        load_results(tmp_path / "nowhere")
    Tables(tmp_path, {})
    (tmp_path / "curves" / "part-00000.parquet").unlink()
    with pytest.raises(RunDirectoryError, match="is not a run directory: it has no table curves/"):
        load_results(tmp_path)
    newer = pa.schema([("trajectory_id", pa.string())], {"ticket_search.schema_version": "7"})
    pq.write_table(newer.empty_table(), tmp_path / "curves" / "part-00000.parquet")
    with pytest.raises(RunDirectoryError, match="curves has schema version 7, but this ticket_search reads at most 3"):
        load_results(tmp_path)


def test_five_thousand_levels_are_flushed_quickly(tmp_path):
    table = Tables(tmp_path, SPACE).levels
    best = float("inf")
    for n in range(3):
        for level in range(5000):
            table.put(LEVEL | {"trajectory_id": f"t{n}", "level": level})
        start = time.perf_counter()
        table.flush()
        best = min(best, time.perf_counter() - start)
    assert best < 0.5  # in seconds; an idle machine needs 0.05 s, but test machines are not idle


def test_an_interrupted_upgrade_leaves_a_readable_table_and_is_completed_later(tmp_path, monkeypatch):
    """If a process dies after rewriting one of three chunks of version 1, the next process finishes the upgrade."""
    now = schemas({})["curves"]
    then = pa.schema([field for field in now if field.name != "val_metric"], {"ticket_search.schema_version": "1"})
    for chunk in range(3):
        rows = [{"trajectory_id": f"t{chunk}", "level": n, "iteration": 1, "val_accuracy": n / 4} for n in range(2)]
        pq.write_table(pa.Table.from_pylist(rows, schema=then), tmp_path / f"part-{chunk:05}.parquet")
    save, saved = Table._save, []

    def save_once(table, chunk, content):
        saved.append(chunk)
        if len(saved) > 1:
            raise KeyboardInterrupt
        save(table, chunk, content)

    with monkeypatch.context() as patch:
        patch.setattr(Table, "_save", save_once)
        with pytest.raises(KeyboardInterrupt):
            Table(tmp_path, now, ("trajectory_id", "level"), name="curves", capacity=2)
    assert saved == [2, 1]
    assert "val_metric" not in pd.read_parquet(tmp_path)
    assert len(pd.read_parquet(tmp_path)) == 6
    table = Table(tmp_path, now, ("trajectory_id", "level"), name="curves", capacity=2)
    assert [row["val_metric"] for row in table.rows()] == [0.0, 0.25] * 3
    assert list(pd.read_parquet(tmp_path)["val_metric"]) == [0.0, 0.25] * 3
