"""A damaged chunk is reported, and a resumed search rebuilds its rows from the level store."""

import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import finished_levels, in_process

from ticket_search.errors import RunDirectoryError
from ticket_search.results.chunks import read_chunk, write_chunk
from ticket_search.results.events import EventLog, read_events
from ticket_search.results.reading import load_results
from ticket_search.results.schema import KEYS, schemas
from ticket_search.results.tables import REBUILD_FILE, Table
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, LevelReport
from ticket_search.storage.local import LocalFolder

GOLDEN = Path(__file__).parents[1] / "golden" / "version_1_controls"
SCHEMA = schemas({})["layers"]
CHUNK = "part-00000.parquet"


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no Parquet at all"),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: flip(path, 60),
}


def tables(run_dir):
    results = load_results(run_dir)
    return {name: getattr(results, name) for name in KEYS}


def assert_equal_tables(run_dir, before):
    for name, frame in tables(run_dir).items():
        pd.testing.assert_frame_equal(frame, before[name], check_exact=True)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("table", ["levels", "curves"])
def test_readers_name_the_damaged_file_and_how_to_rebuild_it(finished_search, table, damage):
    chunk = finished_search / table / CHUNK
    DAMAGES[damage](chunk)
    with pytest.raises(RunDirectoryError) as error:
        load_results(finished_search)
    message = str(error.value)
    assert f"'{chunk}' is damaged (" in message
    assert message.endswith(f"`ticket-search resume {finished_search}` rebuilds it from the store")
    assert "\n" not in message


def test_resume_rebuilds_every_table_from_the_store_and_trains_nothing(finished_search):
    before, trained = tables(finished_search), finished_levels(finished_search)
    for name, damage in zip(("levels", "trajectories", "curves", "layers"), DAMAGES.values(), strict=True):
        damage(finished_search / name / CHUNK)
    said = in_process("resume", finished_search, "--engine", "inline")
    assert said.returncode == 0, said.stderr
    for name in ("levels", "trajectories", "curves", "layers"):
        chunk = finished_search / name / CHUNK
        assert said.stderr.count(f"{chunk} is damaged") == 1
        assert len(list(chunk.parent.glob(f"_{CHUNK}.*.damaged"))) == 1
        assert len(pd.read_parquet(chunk.parent)) == len(before[name])
    assert_equal_tables(finished_search, before)
    assert finished_levels(finished_search) == trained
    assert not (finished_search / REBUILD_FILE).exists()


@pytest.mark.parametrize("gone", [["levels"], ["trajectories"], ["curves"], ["controls"], list(KEYS)], ids="+".join)
def test_resume_rebuilds_a_table_whose_folder_was_removed(finished_search, gone):
    before, trained = tables(finished_search), finished_levels(finished_search)
    for name in gone:
        shutil.rmtree(finished_search / name)
    names = ", ".join(f"{name}/" for name in gone)
    message = f"'{finished_search}' is damaged: it has no table {names}; `ticket-search resume {finished_search}`"
    for command in ("tickets", "status", "store"):
        said = in_process(command, finished_search)
        assert (said.returncode, said.stderr.count("\n")) == (2, 1)
        assert said.stderr == f"error: {message} rebuilds it from the store\n"
    said = in_process("resume", finished_search, "--engine", "inline")
    assert said.returncode == 0, said.stderr
    for name in gone:
        assert (
            said.stderr.count(f"{finished_search / name} is missing; its rows will be rebuilt from the level store")
            == 1
        )
    assert_equal_tables(finished_search, before)
    assert finished_levels(finished_search) == trained
    assert not (finished_search / REBUILD_FILE).exists()


@pytest.mark.parametrize("name", ["controls", "early_bird"])
def test_a_missing_table_that_the_first_version_did_not_write_is_no_damage(tmp_path, name):
    run_dir = Path(shutil.copytree(GOLDEN, tmp_path / "run"))
    shutil.rmtree(run_dir / name)
    assert getattr(load_results(run_dir), name).empty
    said = in_process("resume", run_dir, "--engine", "inline")
    assert (said.returncode, "missing" in said.stderr) == (0, False)


def test_a_chunk_is_read_once_when_its_table_is_opened(finished_search, monkeypatch):
    read, seen = LocalFolder.read, Counter()
    monkeypatch.setattr(LocalFolder, "read", lambda self, name: seen.update([name]) or read(self, name))
    Table(finished_search / "levels", schemas({"pruning_rate": (0.3, 0.6)})["levels"], KEYS["levels"], name="levels")
    assert seen == {CHUNK: 1}


def test_a_rebuild_first_says_how_many_levels_are_trained_again(finished_search):
    before = tables(finished_search)
    assert in_process("store", finished_search, "--keep-best", "0").returncode == 0
    shutil.rmtree(finished_search / "curves")
    said = in_process("resume", finished_search, "--engine", "inline")
    assert said.returncode == 0, said.stderr
    # The 18 levels are 2 tickets of each of the 8 trajectories, and 1 dense network for each of the 2 seeds.
    line = "the level store no longer has 18 of the 18 levels whose rows must be rebuilt; 18 will be trained again"
    assert said.stderr.splitlines().count(line) == 1
    assert len(tables(finished_search)["curves"]) == len(before["curves"])


def test_only_trajectories_that_lack_rows_are_replayed(finished_search):
    """If a table loses one of two chunks after the store was pruned, only that chunk's trajectories are replayed."""
    before = tables(finished_search)
    curves = pq.read_table(finished_search / "curves" / CHUNK)
    lost = {curves["trajectory_id"][-1].as_py()}
    kept = [row for row in curves.to_pylist() if row["trajectory_id"] not in lost]
    rows = [row for row in curves.to_pylist() if row["trajectory_id"] in lost]
    for name, part in ((CHUNK, kept), ("part-00001.parquet", rows)):
        (finished_search / "curves" / name).write_bytes(write_chunk(pa.Table.from_pylist(part, curves.schema)))
    assert_equal_tables(finished_search, before)
    assert in_process("store", finished_search, "--keep-best", "0").returncode == 0
    (finished_search / "curves" / "part-00001.parquet").unlink()
    said = in_process("resume", finished_search, "--engine", "inline")
    assert said.returncode == 0, said.stderr
    assert "no longer has 3 of the 3 levels whose rows must be rebuilt" in said.stderr
    again = Counter(
        event["trajectory_id"] for event in read_events(finished_search) if event["event"] == "trajectory_ended"
    )
    assert {name for name, count in again.items() if count > 1} == lost
    assert tables(finished_search)["curves"].shape == before["curves"].shape


def test_controls_and_early_bird_are_rebuilt_too(tmp_path):
    run_dir = Path(shutil.copytree(GOLDEN, tmp_path / "run"))
    before, trained = tables(run_dir), finished_levels(run_dir)
    for name in ("controls", "early_bird"):
        (run_dir / name / CHUNK).write_bytes(b"")
    said = in_process("resume", run_dir, "--engine", "inline")
    assert said.returncode == 0, said.stderr
    assert_equal_tables(run_dir, before)
    assert finished_levels(run_dir) == trained


def test_the_rows_of_a_missing_chunk_are_rebuilt_at_the_end(tmp_path):
    row = {"trajectory_id": "a", "name": "x", "kept_weights": 1, "weights": 2, "density": 0.5}
    told = []

    def opened():
        return Table(tmp_path, SCHEMA, ("trajectory_id", "level"), capacity=3, on_damage=told.append)

    table = opened()
    for level in range(7):
        table.put(row | {"level": level})
    table.flush()
    (tmp_path / "part-00001.parquet").unlink()
    again = opened()
    assert len(told) == 1
    assert told[0].endswith("part-00001.parquet is missing; its rows will be rebuilt from the level store")
    assert [n for n in range(7) if ("a", n) not in again] == [3, 4, 5]
    for level in range(8):
        again.put(row | {"level": level})
    again.flush()
    assert [r["level"] for r in opened().rows()] == [0, 1, 2, 6, 3, 4, 5, 7]
    assert len(told) == 1


@pytest.mark.parametrize("name", ["notes.txt", ".DS_Store", "part-00000 (copy).parquet", "part-00000.parquet~"])
def test_a_stray_file_in_a_table_is_ignored(finished_search, name):
    before = tables(finished_search)
    for table in KEYS:
        (finished_search / table / name).write_text("not ours")
    assert_equal_tables(finished_search, before)
    for command in ("tickets", "status"):
        assert in_process(command, finished_search).returncode == 0
    said = in_process("resume", finished_search, "--engine", "inline")
    assert (said.returncode, "damaged" in said.stderr) == (0, False)
    assert (finished_search / "levels" / name).read_text() == "not ours"


def some_table():
    row = {"trajectory_id": "a", "name": "fc1.weight", "weights": 99, "density": 0.5}
    return pa.Table.from_pylist([row | {"level": n, "kept_weights": 7 * n} for n in range(50)], schema=SCHEMA)


def test_no_flipped_byte_of_a_chunk_passes():
    """Only flips in the checksum's name go unnoticed: without it, the chunk looks like one of an earlier version."""
    table = some_table()
    data = write_chunk(table)
    unseen = []
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        try:
            after = read_chunk(bytes(damaged))
        except ValueError:
            continue
        unseen.append(position)
        assert after.equals(table)
    mark = data.index(b"ticket_search.sha256=")
    assert unseen == list(range(mark, mark + len("ticket_search.sha256=")))


def test_no_flipped_byte_of_a_page_of_an_earlier_version_passes():
    """In a chunk of an earlier version, the pages have checksums, but the footer has none."""
    table, sink = some_table(), pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    data, unseen, seen = sink.getvalue().to_pybytes(), [], 0
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        try:
            after = read_chunk(bytes(damaged))
        except ValueError:
            seen += 1
            continue
        if after.schema.equals(SCHEMA) and not after.equals(table):
            unseen.append(position)
    assert (unseen, seen > 100) == ([], True)


def test_a_damaged_column_name_is_not_reported_as_a_bug(finished_search):
    chunk = finished_search / "curves" / CHUNK
    table = pq.read_table(chunk)
    version = {name: value for name, value in table.schema.metadata.items() if b"version" in name}
    renamed = table.rename_columns([name.replace("val_loss", "vaL_loss") for name in table.column_names])
    pq.write_table(renamed.replace_schema_metadata(version), chunk)
    with pytest.raises(RunDirectoryError, match=r"/curves' is not the curves table of a search: .*val_loss"):
        load_results(finished_search)


def test_a_chunk_is_plain_parquet_and_can_be_written_again(tmp_path):
    table = some_table()
    data = write_chunk(read_chunk(write_chunk(table)))
    assert read_chunk(data).equals(table)
    (tmp_path / CHUNK).write_bytes(data)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path), table.to_pandas())


def test_pages_carry_checksums_for_other_readers():
    data, noticed = write_chunk(some_table()), 0
    for position in range(4, 204):
        damaged = bytearray(data)
        damaged[position] ^= 4
        try:
            pq.ParquetFile(pa.BufferReader(bytes(damaged)), page_checksum_verification=True).read()
        except (OSError, pa.ArrowException) as error:
            noticed += "CRC" in str(error)
    assert noticed > 20


def report(suggestion, level, accuracy):
    row = {"trajectory_id": suggestion.trajectory_id, "level": level, "level_key": "key", "seed": suggestion.seed}
    figures = {"density": 0.5**level, "compression": 2.0**level, "val_metric": accuracy, "dense_val_metric": 0.9}
    verdict = {"metric": "accuracy", "higher_is_better": True, "matching": accuracy >= 0.9}
    layer = {"trajectory_id": suggestion.trajectory_id, "level": level, "name": "fc1.weight"}
    return LevelReport(
        level=row | figures | verdict | {"iterations": 1, "train_seconds": 1.0}, curve=[], layers=[layer]
    )


def replayed(driver, levels):
    """Report up to `levels` levels of the next trajectory, until it is stopped; return how many were reported."""
    suggestion = driver.next()
    for level in range(levels):
        if reason := driver.level_finished(suggestion.number, report(suggestion, level, 0.9 if level < 2 else 0.1)):
            driver.ended(suggestion.number, EndReport(status="stopped", reason=reason))
            return level + 1
    driver.ended(suggestion.number, EndReport(status="completed"))
    return levels


@pytest.mark.parametrize("lost", ["levels", "trajectories"])
def test_a_stopped_trajectory_is_replayed_up_to_its_stop(search, tmp_path, lost):
    spec = search({"pruning_rate": [0.5, 0.2]}, seeds=(0,), sampler="grid", trials=None, early_stopping=None)
    driver = SearchDriver(spec, tmp_path)
    for levels in (3, 4):
        suggestion = driver.next()
        for level in range(levels):
            finished = report(suggestion, level, 0.9)
            EventLog(tmp_path).log("level_finished", **finished.level)
            driver.level_finished(suggestion.number, finished)
        driver.ended(suggestion.number, EndReport(status="stopped", reason=f"after {levels}"))
    driver.flush()
    (tmp_path / lost / CHUNK).write_bytes(b"")

    # The first driver is killed after rebuilding one of the two trajectories; the next driver rebuilds both.
    killed = SearchDriver(spec, tmp_path)
    assert replayed(killed, 9) == 3
    assert (tmp_path / REBUILD_FILE).exists()
    again = SearchDriver(spec, tmp_path)
    assert (replayed(again, 9), replayed(again, 9), again.next()) == (3, 4, None)
    assert not (tmp_path / REBUILD_FILE).exists()
    assert sorted(load_results(tmp_path).trajectories["reason"]) == ["after 3", "after 4"]
    assert len(load_results(tmp_path).levels) == 7
