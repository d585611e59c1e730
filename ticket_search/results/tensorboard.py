"""Writes TensorBoard files, with a run for each trajectory and an HParams tab."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa

from ticket_search.config.space import Domain, Range
from ticket_search.results import figures
from ticket_search.results.figures import Column
from ticket_search.results.schema import column, configuration, encode
from ticket_search.storage.folder import Location, open_folder

_METRICS = ("score", "sparsest_matching_density")


class TensorBoardWriter:
    """Writes the files of each trajectory to a subfolder of `folder`, whenever `flush` is called.

    A writer keeps no file open and starts no threads. The caller must add each level and each trajectory only once.

    Args:
        folder: the folder ``tensorboard/`` of the run directory.
        space: the domain of each field of the search space, by name.
    """

    def __init__(self, folder: Location, space: Mapping[str, Domain]) -> None:
        self._folder = open_folder(folder)
        self._pending: dict[str, list[bytes]] = {}
        self._begun: set[str] = set()
        self._ended: list[str] = []
        self._flushes = 0
        self._columns = configuration(space)
        # TensorBoard reads the files of a run in order of their names, and never reads past a torn record in a file.
        # A resumed search must therefore not append to the file of a killed process.
        self._file = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self._folder.sweep()
        experiment = "events.out.tfevents.0000000000.space"
        if self._folder.read(experiment) is None:
            domains = {column(name): domain for name, domain in space.items()}
            self._folder.write(experiment, _experiment(self._columns, domains))

    def level(self, row: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> None:
        """Add a finished level: its row of `levels` and its rows of `curves`. Null values are skipped."""
        prefix = f"curve/level_{row['level']:03}"
        records = [_scalars(row["level"], {f"level/{name}": row.get(name) for name in _drawn(figures.FIGURES)})]
        for point in curve:
            values = {f"{prefix}/{name}": point.get(name) for name in _drawn(figures.CURVE_FIGURES)}
            records.append(_scalars(point["iteration"], values))
        self._pending.setdefault(row["trajectory_id"], []).extend(records)

    def trajectory(self, row: Mapping[str, Any]) -> None:
        """Add a finished trajectory, given its row of `trajectories`, to the HParams tab."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

        values = {field.name: encode(field, row.get(field.name)) for field in self._columns}
        known = {name: value for name, value in values.items() if value is not None}
        now = time.time()
        start = summary_v2.hparams_pb(known, trial_id=row["trajectory_id"], start_time_secs=now)
        end = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(
                status=api_pb2.STATUS_FAILURE if row.get("status") == "failed" else api_pb2.STATUS_SUCCESS,
                end_time_secs=now,
            )
        )
        metrics = _scalars(row.get("levels") or 0, {name: row.get(name) for name in _METRICS})
        records = [_event(0, start), metrics, _hparams_event(metadata.SESSION_END_INFO_TAG, end)]
        self._pending.setdefault(row["trajectory_id"], []).extend(records)
        self._ended.append(row["trajectory_id"])

    def flush(self) -> None:
        """Write everything added since the last flush. In object storage, every flush writes new files."""
        while self._pending:
            trajectory_id, records = next(iter(self._pending.items()))
            name = f"{trajectory_id}/{self._file}"
            if not self._folder.grows:
                self._folder.write(f"{name}.{self._flushes:05}", _framed([_version(), *records]))
            else:
                begun = trajectory_id in self._begun
                self._folder.append(name, _framed(records if begun else [_version(), *records]))
                self._begun.add(trajectory_id)
            del self._pending[trajectory_id]
        self._flushes += 1
        self._begun.difference_update(self._ended)
        self._ended.clear()


def _drawn(columns: Sequence[Column]) -> list[str]:
    return [column.name for column in columns if column.in_tensorboard]


def _framed(records: Sequence[bytes]) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = BytesIO()
    writer = RecordWriter(file)
    for record in records:
        writer.write(record)
    return file.getvalue()


def _version() -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return bytes(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())


def _event(step: int, summary: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return bytes(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())


def _scalars(step: int, values: Mapping[str, float | None]) -> bytes:
    from tensorboard.compat.proto.summary_pb2 import Summary

    known = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
    return _event(step, Summary(value=known))


def _hparams_event(tag: str, content: Any) -> bytes:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
    return _event(0, Summary(value=[value]))


def _experiment(columns: Sequence[pa.Field], domains: Mapping[str, Domain]) -> bytes:
    """Return the content of the file that defines the columns of the HParams tab."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    experiment = api_pb2.Experiment(
        hparam_infos=[_hparam(field, domains.get(field.name)) for field in columns],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in _METRICS],
        time_created_secs=time.time(),
    )
    content = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    return _framed([_version(), _hparams_event(metadata.EXPERIMENT_TAG, content)])


def _hparam(field: pa.Field, domain: Domain | None) -> Any:
    from tensorboard.plugins.hparams import api_pb2

    types = {pa.string(): api_pb2.DATA_TYPE_STRING, pa.bool_(): api_pb2.DATA_TYPE_BOOL}
    info = api_pb2.HParamInfo(name=field.name, type=types.get(field.type, api_pb2.DATA_TYPE_FLOAT64))
    if isinstance(domain, Range):
        info.domain_interval.min_value = domain.low
        info.domain_interval.max_value = domain.high
    elif domain is not None:
        info.domain_discrete.extend([encode(field, value) for value in domain if value is not None])
    return info
