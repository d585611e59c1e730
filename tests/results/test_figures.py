"""A figure is declared in one place, from which the tables, their documentation and TensorBoard are derived."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

import ticket_search
from ticket_search import load_results
from ticket_search.launch.run import run_search
from ticket_search.results import figures
from ticket_search.results.columns import SEARCHED, table_columns
from ticket_search.results.figures import SCHEMA_VERSION, Figure
from ticket_search.results.schema import KEYS, schemas

DOCS = Path(__file__).parents[2] / "docs" / "tables.md"
NEW = Figure(
    name="final_train_loss",
    type="double",
    meaning="mean over the last batches",
    since=SCHEMA_VERSION + 1,
    value=lambda finished: finished.level.curve[-1].train_loss,
    of_controls=True,
    in_tensorboard=True,
)


def markdown(name):
    """Return the columns of a table, formatted as in ``docs/tables.md``."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    for column in table_columns()[name]:
        head = "*searched fields* | " if column is SEARCHED else f"`{column.name}` | {column.type}"
        lines.append(f"| {head} | {column.meaning} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", KEYS)
def test_the_documentation_equals_the_declaration(name):
    """If this test fails, copy the right-hand side of the assertion into ``docs/tables.md``."""
    section = DOCS.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    found = "".join(f"{line}\n" for line in section.splitlines() if line.startswith("|"))
    assert found == markdown(name)


def test_every_column_is_declared_once():
    for name, columns in table_columns().items():
        names = [column.name for column in columns]
        assert sorted(set(names)) == sorted(names), name


@pytest.fixture
def one_more_figure(monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, NEW))
    monkeypatch.setattr("ticket_search.results.figures.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr("ticket_search.results.schema.SCHEMA_VERSION", SCHEMA_VERSION + 1)


@pytest.fixture
def spec(search):
    return search(
        {"pruning_rate": [0.5, 0.6]},
        base={"controls": {"kinds": ["random_reinit"], "levels": "last"}},
        seeds=(0,),
        sampler="grid",
        trials=None,
    )


def test_an_added_figure_is_in_the_tables_and_in_tensorboard(one_more_figure, spec, tmp_path):
    run_search(spec, tmp_path, engine="inline")
    results = load_results(tmp_path)
    last = results.curves.groupby(["trajectory_id", "level"]).tail(1)["train_loss"]
    assert list(results.levels["final_train_loss"]) == list(last)
    assert results.controls["final_train_loss"].notna().all()
    assert "final_train_loss" in schemas({})["levels"].names
    drawn = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").rglob("events*"))
    assert b"level/final_train_loss" in drawn


def test_an_added_figure_is_null_for_older_levels_of_a_resumed_search(spec, tmp_path, monkeypatch, request):
    shorter = spec.model_copy(update={"search": spec.search.model_copy(update={"trials": 1})})
    run_search(shorter, tmp_path, engine="inline")
    before = load_results(tmp_path)
    request.getfixturevalue("one_more_figure")
    assert load_results(tmp_path).levels["final_train_loss"].isna().all()
    run_search(spec, tmp_path, engine="inline")
    levels = pd.read_parquet(tmp_path / "levels").sort_values(["trajectory_id", "level"])
    old = levels["trajectory_id"].isin(before.trajectories["trajectory_id"])
    assert (old.sum(), (~old).sum()) == (3, 3)
    assert levels.loc[old, "final_train_loss"].isna().all()
    assert levels.loc[~old, "final_train_loss"].notna().all()
    kept = levels[old].drop(columns="final_train_loss").reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before.levels, check_exact=True)


def test_the_levels_of_two_searches_can_be_concatenated(spec, search, tmp_path):
    """Both tables have columns for the network, data set and machine, although only one search varies the network."""
    settings = {"base": {"max_levels": 1}, "seeds": (0,), "sampler": "grid", "trials": None}
    searched = search({"pruning_rate": [0.5], "model.name": ["lenet_8", "lenet_4"]}, **settings)
    plain = search({"pruning_rate": [0.5]}, **settings)
    for name, each in {"searched": searched, "plain": plain}.items():
        run_search(each, tmp_path / name, engine="inline")
    one, other = (pd.read_parquet(tmp_path / name / "levels") for name in ("searched", "plain"))
    assert list(one.columns) == list(other.columns) == list(load_results(tmp_path / "plain").levels.columns)
    both = pd.concat([one, other])
    assert Counter(both["model.name"]) == {"lenet_8": 2, "lenet_4": 2, "lenet_16": 2}
    assert set(both["dataset.name"]) == {"digits"}
    assert set(both["torch_version"]) == {str(torch.__version__)}
    assert set(both["ticket_search_version"]) == {ticket_search.__version__}
    assert (set(both["device"]), set(both["threads"])) == ({"cpu"}, {1})


def test_a_stored_figure_is_none_in_an_older_record():
    assert Figure(name="x", type="double", stored=("x", "y")).read({"y": 2.0, "z": 3.0}) == 2.0
    assert Figure(name="x", type="double", stored=("x", "y")).read({"z": 3.0}) is None
