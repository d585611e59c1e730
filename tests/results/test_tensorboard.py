import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from ticket_search.config.space import Range
from ticket_search.results.tensorboard import TensorBoardWriter

SPACE = {
    "pruning.pruning_rate": Range(low=0.1, high=0.6),
    "strategy": ("layerwise", "global"),
    "dataset.augment": (None, {"crop": 4}),
}
TRAJECTORY = {
    "trajectory_id": "abc",
    "pruning_rate": 0.5,
    "strategy": "global",
    "criterion": "magnitude",
    "rewind_iteration": 100,
    "seed": 3,
    "dataset.augment": {"crop": 4},
    "status": "completed",
    "levels": 2,
    "score": 1.0,
    "sparsest_matching_density": 0.5,
}


def level(n, val_loss=0.25):
    return {
        "trajectory_id": "abc",
        "level": n,
        "val_accuracy": 0.5,
        "test_accuracy": 0.75,
        "val_loss": val_loss,
        "density": 0.5**n,
        "compression": 2.0**n,
    }


CURVE = [
    {"iteration": 0, "val_accuracy": 0.125, "val_loss": 2.0, "train_loss": None},
    {"iteration": 100, "val_accuracy": 0.5, "val_loss": 1.0, "train_loss": 0.5},
]


def read(folder):
    return EventAccumulator(str(folder)).Reload()


def scalars(run, tag):
    return [(event.step, event.value) for event in run.Scalars(tag)]


def test_levels_and_curves_are_scalars(tmp_path):
    writer = TensorBoardWriter(tmp_path, SPACE)
    writer.level(level(0), CURVE)
    writer.level(level(1, val_loss=None), CURVE[1:])
    writer.flush()
    run = read(tmp_path / "abc")
    assert {tag: scalars(run, tag) for tag in run.Tags()["scalars"]} == {
        "level/val_accuracy": [(0, 0.5), (1, 0.5)],
        "level/test_accuracy": [(0, 0.75), (1, 0.75)],
        "level/val_loss": [(0, 0.25)],
        "level/density": [(0, 1.0), (1, 0.5)],
        "level/compression": [(0, 1.0), (1, 2.0)],
        "curve/level_000/val_accuracy": [(0, 0.125), (100, 0.5)],
        "curve/level_000/val_loss": [(0, 2.0), (100, 1.0)],
        "curve/level_000/train_loss": [(100, 0.5)],
        "curve/level_001/val_accuracy": [(100, 0.5)],
        "curve/level_001/val_loss": [(100, 1.0)],
        "curve/level_001/train_loss": [(100, 0.5)],
    }


def test_a_trajectory_is_a_session_in_the_hparams_tab(tmp_path):
    writer = TensorBoardWriter(tmp_path, SPACE)
    writer.level(level(0), [])
    writer.trajectory(TRAJECTORY)
    writer.flush()
    run = read(tmp_path / "abc")
    assert (scalars(run, "score"), scalars(run, "sparsest_matching_density")) == ([(2, 1.0)], [(2, 0.5)])
    content = run.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.group_name == "abc"
    assert {name: value.number_value or value.string_value for name, value in start.hparams.items()} == {
        "pruning_rate": 0.5,
        "strategy": "global",
        "criterion": "magnitude",
        "rewind_iteration": 100,
        "seed": 3,
        "dataset.augment": '{"crop": 4}',
    }
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS


def test_nulls_are_skipped_and_failure_is_recorded(tmp_path):
    writer = TensorBoardWriter(tmp_path, {})
    row = TRAJECTORY | {"status": "failed", "score": None, "sparsest_matching_density": None, "levels": None}
    del row["dataset.augment"]
    writer.trajectory(row)
    writer.flush()
    run = read(tmp_path / "abc")
    assert run.Tags()["scalars"] == []
    end = run.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_END_INFO_TAG]
    assert metadata.parse_session_end_info_plugin_data(end).status == api_pb2.STATUS_FAILURE


def test_the_experiment_is_written_once_with_the_space(tmp_path):
    TensorBoardWriter(tmp_path, SPACE)
    TensorBoardWriter(tmp_path, SPACE)
    assert len(list(tmp_path.iterdir())) == 1
    content = read(tmp_path).PluginTagToContent(metadata.PLUGIN_NAME)
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    infos = {info.name: info for info in experiment.hparam_infos}
    assert list(infos) == ["pruning_rate", "strategy", "criterion", "rewind_iteration", "seed", "dataset.augment"]
    assert [info.type for info in infos.values()] == [3, 1, 1, 3, 3, 1]  # 3 is FLOAT64, 1 is STRING
    interval = infos["pruning_rate"].domain_interval
    assert (interval.min_value, interval.max_value) == (0.1, 0.6)
    assert list(infos["strategy"].domain_discrete) == ["layerwise", "global"]
    assert list(infos["dataset.augment"].domain_discrete) == ['{"crop": 4}']
    assert [metric.name.tag for metric in experiment.metric_infos] == ["score", "sparsest_matching_density"]


def written(folder, *numbers):
    writer = TensorBoardWriter(folder, {})
    for number in numbers:
        writer.level(level(number), [])
        writer.flush()


def test_every_flush_is_readable_exactly_once(folder, tmp_path):
    """Object storage cannot append to files, so each flush writes a new file."""
    written(folder, 0, 1, 2)
    for file in folder.files(recursive=True):
        copy = tmp_path / "copy" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(folder.read(file.name))
    assert scalars(read(tmp_path / "copy" / "abc"), "level/density") == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_a_file_cut_off_by_a_kill_does_not_hide_later_levels(tmp_path, monkeypatch):
    monkeypatch.setattr("ticket_search.results.tensorboard.time.time", lambda: 1000.0)
    written(tmp_path, 0)
    (torn,) = (tmp_path / "abc").iterdir()
    with torn.open("ab") as file:
        file.write(b"\x20\x00\x00")
    monkeypatch.setattr("ticket_search.results.tensorboard.time.time", lambda: 2000.0)
    written(tmp_path, 1)
    assert scalars(read(tmp_path / "abc"), "level/density") == [(0, 1.0), (1, 0.5)]


@pytest.mark.parametrize("module", ["tensorboard", "events", "reading", "tables"])
def test_neither_torch_nor_ray_is_imported(module, tmp_path):
    code = f"import sys, pathlib, ticket_search.results.{module} as m;"
    if module == "tensorboard":
        code += "assert 'tensorboard' not in sys.modules; m.TensorBoardWriter(pathlib.Path(sys.argv[1]), {});"
    code += "print({'torch', 'ray', 'tensorflow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
