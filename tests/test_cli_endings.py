"""Tests for how a command ends when it is interrupted, loses its terminal, or hits a bug."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ticket_search.cli import ending_signals, look
from ticket_search.cli.commands import main

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def python(code, **streams):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run([sys.executable, "-c", code], text=True, timeout=30, **streams)


def python_cli(command, folder):
    line = f"{shlex.quote(sys.executable)} -m ticket_search.cli {command}"
    # Let Python buffer its output, as on a user's machine, where writing the rest of a buffer may fail only at exit.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, text=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_click_is_imported_prints_one_line(number):
    code = (
        "import signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == 'click': signal.raise_signal({int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from ticket_search.cli import main\n"
        "main()\n"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_command_prints_one_line(number, tmp_path):
    code = (
        "import os, sys; sys.argv[1:] = ['status', '.']; from ticket_search.cli import look, main\n"
        f"look.open_folder = lambda location: os.kill(os.getpid(), {int(number)})\n"
        "main()\n"
    )
    done = python(code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_search_ends_even_if_its_storage_does_not_answer(number):
    code = (
        "import signal, time; from functools import partial; from ticket_search.cli import running\n"
        "running._SECONDS_TO_END = 0.5\n"
        f"signal.signal({int(number)}, partial(running._interrupt, 'resume with: x'))\n"
        f"try:\n    signal.raise_signal({int(number)})\n"
        "except KeyboardInterrupt:\n    time.sleep(60)\n"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (130, "resume with: x\n")


def test_under_nohup_closing_the_terminal_does_not_end_a_command(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    assert ending_signals() == [signal.SIGINT, signal.SIGTERM]


class TestOutput:
    CODE = (
        "import click, sys; from ticket_search.cli.streams import outlive_audience, prepare_streams\n"
        "prepare_streams(); outlive_audience()\n"
        "for _ in range(2):\n"
        "    click.echo('a'); click.echo('b', err=True); print('c' * 100_000); print('d', file=sys.stderr)\n"
        "open(sys.argv[1], 'w').write('reached') if len(sys.argv) > 1 else None\n"
    )

    def test_a_full_disk_does_not_end_the_process(self):
        with Path("/dev/full").open("w") as full:
            assert python(self.CODE, stdout=full, stderr=full).returncode == 0

    def test_a_closed_pipe_does_not_end_the_process(self):
        command = [sys.executable, "-c", self.CODE]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            process.stdout.close()
            assert process.wait(timeout=30) == 0

    def test_streams_closed_before_the_start_do_not_end_the_process(self):
        done = subprocess.run(["bash", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, self.CODE], timeout=30)
        assert done.returncode == 0

    def test_all_output_reaches_a_reader(self):
        done = python(self.CODE)
        assert done.stdout == f"a\n{'c' * 100_000}\n" * 2
        assert done.stderr == "b\nd\n" * 2

    @pytest.mark.parametrize("command", ["--help", "status ."])
    def test_a_full_disk_under_stdout_is_no_bug(self, command, finished_search):
        said = python_cli(f"{command} > /dev/full", finished_search)
        assert (said.returncode, said.stderr) == (1, "error: cannot write to stdout: No space left on device\n")

    @pytest.mark.parametrize("command", ["status . >&-", "tickets . >&-", "tickets . <&- >&- 2>&-"])
    def test_a_command_with_closed_streams_succeeds(self, command, finished_search):
        said = python_cli(command, finished_search)
        assert (said.returncode, said.stderr) == (0, "")

    @pytest.mark.parametrize("streams", ["2>&-", "2> /dev/full"])
    def test_a_refusal_that_nobody_reads_keeps_its_exit_code(self, streams, tmp_path):
        assert python_cli(f"status . {streams}", tmp_path).returncode == 2


class TestDebug:
    @pytest.fixture
    def bug(self, monkeypatch):
        def divide(location):
            return 1 / 0

        monkeypatch.setattr(look, "open_folder", divide)

    def test_a_bug_is_one_line_with_its_type_and_place(self, bug):
        said = CliRunner().invoke(main, ["status", "x"])
        assert (said.exit_code, said.stdout) == (1, "")
        (line,) = said.stderr.splitlines()
        assert line.startswith("error: ZeroDivisionError: division by zero (")
        assert f"{look.__file__}:" in line
        assert line.endswith("This is a bug in ticket_search; run again with --debug to see a traceback")

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (MemoryError(), "error: the system is out of memory; stop other programs, "),
            (
                OSError(28, "No space left on device", "/tmp/x"),
                "error: OSError: [Errno 28] No space left on device: '/tmp",
            ),
        ],
    )
    def test_what_the_system_refuses_is_not_called_a_bug(self, error, line, monkeypatch):
        def refuse(location):
            raise error

        monkeypatch.setattr(look, "open_folder", refuse)
        said = CliRunner().invoke(main, ["status", "x"])
        assert said.exit_code == 1
        assert said.stderr.startswith(line)
        assert "bug" not in said.stderr

    @pytest.mark.parametrize("arguments", [["--debug", "status", "x"], ["status", "x", "--debug"]])
    def test_debug_shows_the_traceback_of_a_bug(self, bug, arguments):
        said = CliRunner().invoke(main, arguments)
        assert said.exit_code == 1
        first, *_, last = said.stderr.splitlines()
        assert first.startswith("Traceback")
        assert "in divide" in said.stderr
        assert last.endswith("This is a bug in ticket_search")

    def test_debug_shows_the_traceback_of_a_refusal(self, tmp_path):
        said = CliRunner().invoke(main, ["status", str(tmp_path), "--debug"])
        assert said.exit_code == 2
        assert "RunDirectoryError" in said.stderr
        assert "is not a run directory" in said.stderr.splitlines()[-1]

    def test_a_bug_in_the_driver_says_how_to_resume(self, monkeypatch, tmp_path):
        from ticket_search.search.driver import SearchDriver

        def divide(driver, number):
            return 1 / 0

        monkeypatch.setattr(SearchDriver, "started", divide)
        monkeypatch.chdir(tmp_path)
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            said = CliRunner().invoke(main, ["run", "digits", "--engine", "inline", "--trials", "1"])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        assert said.exit_code == 1
        error, resume = said.stderr.splitlines()[-2:]
        assert error.startswith("error: the search had to stop; finished work is kept: ZeroDivisionError: division by")
        assert resume == "Once this is fixed, resume with: ticket-search resume runs/digits --engine inline"
