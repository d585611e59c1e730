import json
import pickle

from ticket_search.results.events import EventLog, read_events


def test_events_of_all_processes_are_read_in_order_of_time(tmp_path):
    one, two = EventLog(tmp_path, "one"), EventLog(tmp_path)
    assert not (tmp_path / "events").exists()
    one.log("level_started", level_key="k", loss=float("nan"), path=tmp_path)
    two.log("level_reused")
    pickle.loads(pickle.dumps(one)).log("level_finished")
    assert [e["event"] for e in read_events(tmp_path)] == ["level_started", "level_reused", "level_finished"]
    first = read_events(tmp_path)[0]
    assert list(first) == ["time", "event", "level_key", "loss", "path"]
    assert (type(first["time"]), first["loss"], first["path"]) == (float, None, str(tmp_path))
    assert len(list((tmp_path / "events").iterdir())) == 2


def test_an_incomplete_line_is_skipped(tmp_path):
    log = EventLog(tmp_path, "p")
    log.log("a")
    path = tmp_path / "events" / "p.jsonl"
    path.write_text(path.read_text() + '{"time": 1, "ev')
    assert [e["event"] for e in read_events(tmp_path)] == ["a"]
    EventLog(tmp_path, "p").log("b")
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_no_events(tmp_path):
    assert read_events(tmp_path) == []


def test_two_logs_of_one_process_lose_nothing(folder):
    one, other = EventLog(folder), EventLog(folder)
    for number in range(3):
        one.log("a", number=number)
        other.log("b", number=number)
    found = [(event["event"], event["number"]) for event in read_events(folder)]
    assert sorted(found) == [(name, number) for name in "ab" for number in range(3)]
    assert len((folder / "events").files()) == 1
