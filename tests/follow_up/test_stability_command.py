"""The command `stability` trains copies, writes tables and a plot, reuses existing copies and refuses bad input."""

import pandas as pd
import pytest
from helpers import in_process

from ticket_search.follow_up.stability import lines_between_copies
from ticket_search.launch.run import run_search
from ticket_search.results.reading import load_results
from ticket_search.runs.store_use import inspect
from ticket_search.storage.local import LocalFolder


@pytest.fixture(scope="module")
def searched(search, tmp_path_factory):
    """The run directory of a search with two rewind iterations, and the name of a ticket rewound to iteration 8."""
    space = {"pruning_rate": [0.5], "rewind_iteration": [0, 8]}
    folder = tmp_path_factory.mktemp("stability") / "run"
    run_search(search(space, seeds=(1,), sampler="grid", trials=None, early_stopping=None), folder, engine="inline")
    levels = load_results(folder).levels
    row = levels[(levels["level"] == 2) & (levels["rewind_iteration"] == 8)].iloc[0]
    return folder, f"{row['trajectory_id']}/2"


def entries(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*.safetensors")}


def test_the_command_writes_tables_and_a_plot_and_a_second_run_trains_nothing(searched):
    folder, ticket = searched
    before = load_results(folder)
    options = (folder, ticket, "--points", 5, "--engine", "inline")
    said = in_process("stability", *options)
    assert said.returncode == 0, said.stderr
    assert said.stderr.splitlines()[1] == "9 training runs: 3 copies each of the ticket and 2 dense networks"
    table, lines = pd.read_parquet(folder / "stability"), pd.read_parquet(folder / "stability_lines")
    assert table["arm"].tolist() == ["ticket", "dense", "dense"]
    assert table["rewind_iteration"].tolist() == [8, 0, 8]
    assert table["density"].tolist() == [pytest.approx(0.25, abs=0.01), 1.0, 1.0]
    assert table["copies"].tolist() == [3, 3, 3]
    assert len(lines) == 3 * 3 * 5
    assert lines.groupby(["arm", "rewind_iteration", "first", "second"]).size().tolist() == [5] * 9
    assert lines[["val_error", "test_error"]].to_numpy().max() < 1
    # Each copy is an end point of several lines, and its error must be the same on all of them.
    ends = lines[lines["position"].isin([0.0, 1.0])]
    ends = ends.assign(copy=ends["first"].where(ends["position"] == 0.0, ends["second"]))
    assert (ends.groupby(["arm", "rewind_iteration", "copy"])["test_error"].nunique() == 1).all()
    assert (folder / "plots" / f"stability-{ticket.replace('/', '-')}.svg").read_bytes().startswith(b"<?xml")
    assert said.stdout.splitlines()[-1].startswith("plot: ")
    # The tables of the search itself are unchanged.
    pd.testing.assert_frame_equal(load_results(folder).levels, before.levels)
    trained = entries(folder)
    again = in_process("stability", *options)
    assert (again.returncode, again.stdout) == (0, said.stdout)
    assert entries(folder) == trained
    # Pruning the store keeps the copies, unless only the best tickets are to be kept.
    use = inspect(LocalFolder(folder))
    assert (len(use.kinds["copies"]), use.unneeded) == (9, [])
    best = inspect(LocalFolder(folder), lambda results: results.levels.head(0))
    assert {file.name for file in use.kinds["copies"]} <= {file.name for file in best.unneeded}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "stability_lines"), lines)


def test_dense_networks_are_copied_at_the_given_rewinds(searched):
    folder, ticket = searched
    said = []
    options = {"copies": 2, "points": 3, "engine": "inline", "say": said.append}
    lines = lines_between_copies(LocalFolder(folder), ticket, rewinds=(20, 4), **options)
    assert lines.loc[lines["arm"] == "dense", "rewind_iteration"].unique().tolist() == [4, 20]
    assert said[1] == "6 training runs: 2 copies each of the ticket and 2 dense networks"
    assert said[-1] == "measured 3 of 3"


def test_a_rewind_past_the_end_of_training_in_epochs_is_refused_before_anything_is_trained(search, tmp_path):
    spec = search({"pruning_rate": [0.5]}, seeds=(1,), base={"training.iterations": "1ep"}, sampler="grid", trials=None)
    run_search(spec, tmp_path / "run", engine="inline")
    ticket = f"{load_results(tmp_path / 'run').levels['trajectory_id'][0]}/1"
    before = entries(tmp_path / "run")
    said = in_process("stability", tmp_path / "run", ticket, "--rewind", 17, "--engine", "inline")
    assert said.returncode == 2
    assert said.stderr == (
        "error: pruning.rewind_iteration: 17 is not before the end of training at iteration 17; give 0 to 16\n"
    )
    assert entries(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TICKET", "--rewind", 40], "pruning.rewind_iteration: 40 is not before the end of training at iteration 40"),
        (["aa/1"], "unknown ticket 'aa/1'"),
        (["TICKET", "--copies", 1], "1 is not in the range 2<=x<=1000"),
        (["TICKET", "--points", 2], "2 is not in the range 3<=x<=10000"),
        (["TICKET", "--copies", 10**11], "is not in the range 2<=x<=1000"),
    ],
)
def test_bad_input_is_one_message(searched, arguments, message):
    folder, ticket = searched
    said = in_process("stability", folder, *(ticket if each == "TICKET" else each for each in arguments))
    assert said.returncode == 2
    assert message in said.stderr
    assert "Traceback" not in said.stderr
