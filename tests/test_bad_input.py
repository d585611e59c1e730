"""Bad input of every kind gives one message of a few lines and the right exit code, quickly, and leaves nothing behind.

To add a case, add a row to `CASES`.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers import in_process

MOST_LINES = 8
#: A refusal takes milliseconds; the first one of a process also imports torch.
MOST_SECONDS = 20
HUGE = "9" * 400
#: Python refuses to read or write an integer of this length.
TOO_HUGE = "9" * 5000
LONG = "x" * 300


@dataclass(frozen=True, kw_only=True)
class Bad:
    """Arguments that must be refused.

    Attributes:
        arguments: the arguments of `ticket-search`, which runs in an otherwise empty directory.
        message: text that stderr must contain.
        files: the directory's files: path -> text or bytes, or a function that makes the file.
        search: whether the directory also contains a finished search, ``finished_search``.
        code: the exit code.
        absent: text that stderr must not contain.
    """

    arguments: tuple[str, ...]
    message: str
    files: Mapping[str, str | bytes | Callable[[Path], object]] = field(default_factory=dict)
    search: bool = False
    code: int = 2
    absent: str = "Traceback"


def setting(value, message, **other):
    """A run of the shipped search `digits` with a setting."""
    return Bad(arguments=("run", "digits", "--set", value), message=message, **other)


def file(text, message, **other):
    """A search space file with this content."""
    return Bad(arguments=("run", "bad.yaml"), files={"bad.yaml": text}, message=message, **other)


def option(arguments, message, **other):
    """A command on a finished search."""
    command, *rest = arguments.split()
    return Bad(arguments=(command, "finished_search", *rest), message=message, search=True, **other)


def million_bytes(path):
    path.write_bytes(b"#" + b" " * 1_000_000)


UNKNOWN_KEYS = "".join(f"key{i}: 1\n" for i in range(3000))
#: Nine levels of aliases that expand to a billion strings.
BOMB = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
NO_NUMBER = "input should be a valid number"

CASES = {
    # integers that no field can hold
    "400 digits for an integer": setting(f"training.batch_size={HUGE}", "...", absent=HUGE),
    "400 digits for a float": setting(f"training.optimizer.lr={HUGE}", NO_NUMBER, absent=HUGE),
    "400 digits in a list": setting(f"space.pruning_rate=[0.5, {HUGE}]", NO_NUMBER, absent=HUGE),
    "400 digits in a range": setting(f"space.rewind_iteration={{low: 0, high: {HUGE}}}", "high: 9999", absent=HUGE),
    "400 digits for a step": setting(f"space.pruning_rate={{low: 0.1, high: 0.5, step: {HUGE}}}", "step: 9999"),
    "400 digits of iterations": setting(f"training.iterations={HUGE}", "is not a length of training", absent=HUGE),
    "400 digits of trajectories": setting(f"search.early_stopping.min_trajectories={HUGE}", "less than or equal"),
    "400 digits of CPUs": setting(f"resources.cpus={HUGE}", NO_NUMBER),
    "400 digits of a seed": setting(f"seeds=[{HUGE}]", "seeds.0: 9999", absent=HUGE),
    "5,000 digits": setting(f"training.batch_size={TOO_HUGE}", "value has 5000 digits", absent=TOO_HUGE),
    "5,000 digits in a file": file(
        f"seeds: [{TOO_HUGE}]", "bad.yaml: not a number: Exceeds the limit", absent="sys.set"
    ),
    "5,000 digits of trials": Bad(arguments=("run", "digits", "--trials", TOO_HUGE), message="...", absent=TOO_HUGE),
    "400 digits of trials": Bad(arguments=("run", "digits", "--trials", HUGE), message="...", absent=HUGE),
    # numbers that would take too much time or memory
    "a rate of 1e-12": setting(
        "space.pruning_rate=[1.0e-12]",
        "pruning_rate 1e-12 takes 3912023005426 levels to density 0.02, more than 10000; give a greater pruning_rate",
    ),
    "the least rate there is": setting("space.pruning_rate=[5.0e-324]", "takes 1000000000000000000 levels"),
    "10^18 iterations": setting("training.iterations=1000000000000000000", "give 1 to 1000000000 iterations"),
    "too many epochs": setting("training.iterations=999999999ep", "is 32999999967 iterations, more than 1000000000"),
    "10^9 controls": setting("controls={kinds: [random_mask], draws: 1000000000}", "less than or equal to 10000"),
    "a span of 2e308": setting(
        "space.training.optimizer.lr={low: -1.0e308, high: 1.0e308, step: 1}", "makes inf values"
    ),
    "a GPU share of 1e-320": setting("resources.gpus=1.0e-320", "less than Ray supports; give at least 0.0001"),
    "10,001 values": setting(
        f"space.rewind_iteration=[{', '.join(map(str, range(10_001)))}]", "10001 values are too many"
    ),
    # floats for integers
    "60.0 iterations": setting("training.iterations=60.0", "60.0 is not a length of training: write 60, not 60.0"),
    "a batch of 60.0": setting("training.batch_size=60.0", "60.0 is not valid: write 60, not 60.0"),
    # networks that are too large
    "layers of a million": setting("model.name=lenet_1000000_1000000", "a layer has 1 to 999999 units"),
    "layers of 5,000 digits": setting(f"model.name=lenet_{TOO_HUGE}", "a layer has 1 to 999999", absent=TOO_HUGE),
    "10^12 weights": setting(
        "model.name=lenet_999999_999999", "999998000001 weights between hidden layers are more than"
    ),
    "20,000 layers": setting("model.name=resnet20000", "'resnet20000': a ResNet has at most 9998 layers"),
    "a ResNet of 5,000 digits": setting(f"model.name=resnet{TOO_HUGE}", "at most 9998 layers", absent=TOO_HUGE),
    # many problems, or one very long value
    "3,000 unknown keys": file(UNKNOWN_KEYS, "more"),
    "3,000 wrong seeds": setting(f"seeds=[{', '.join(['a'] * 3000)}]", "and 2,997 more"),
    "a network of 300 letters": setting(f"model.name={LONG}", "unknown model 'xxx", absent=LONG),
    "a data set of 300 letters": setting(f"dataset.name={LONG}", "unknown dataset 'xxx", absent=LONG),
    "a key of 300 letters": setting(f"{LONG}=1", "unknown key 'xxx", absent=LONG),
    "a field of 300 letters": setting(f"space.{LONG}=[1]", "unknown field to search 'xxx", absent=LONG),
    "a setting of 300 letters": setting(LONG, "is not KEY=VALUE", absent=LONG),
    "a name of 300 letters": setting(f"name={LONG}", "cannot name a directory", absent=LONG),
    "a space of 300 letters": Bad(arguments=("run", LONG), message="File name too long", absent=LONG),
    "a list of 3,000 letters": setting(f"training.batch_size=[{', '.join(LONG)}]", "is not valid", absent="x', " * 100),
    "a billion strings": file(BOMB, "name: is missing"),
    "a billion strings as a value": file(BOMB + "name: *a9\n", "is not valid"),
    # YAML 1.2
    "a time for an integer": setting(
        "training.batch_size=1:30", "'1:30' is not valid: input should be a valid integer"
    ),
    "yes": setting("dataset.download=yes", "'yes' is not valid: input should be a valid boolean"),
    "off": setting("dataset.augment={flip: off}", "'off' is not valid"),
    "a key twice": file("name: x\nname: y\n", 'bad.yaml, line 2, column 1: not valid YAML: a second key "name"'),
    "a key twice, at length": file(f"name: {LONG}\nname: {LONG}\n", 'a second key "name"', absent=LONG),
    "another tag": file("!!python/object:os.system x\n", "could not determine a constructor"),
    "a control character": file("name: \x01\n", "not valid YAML"),
    "depth": file("[" * 1000, "not valid YAML"),
    "two documents": file("a: 1\n---\nb: 2\n", "line 2, column 1: not valid YAML: but found another document"),
    # paths that are not regular files
    "a FIFO": Bad(arguments=("run", "fifo"), files={"fifo": os.mkfifo}, message="not a regular file"),
    "an endless device": Bad(arguments=("run", "/dev/zero"), message="'/dev/zero': not a regular file"),
    "a folder": Bad(arguments=("run", "folder"), files={"folder": Path.mkdir}, message="'folder': not a regular file"),
    "a megabyte": file(million_bytes, "1000001 bytes, more than 1000000"),
    "a loop of links": Bad(
        arguments=("run", "loop"),
        files={"loop": lambda p: p.symlink_to("loop")},
        message="neither a file nor a search that ships",
    ),
    # numbers on the command line
    "a margin of nan": option("confirm --margin nan", "nan is not in the range"),
    "a margin of inf": option("confirm --margin inf", "inf is not in the range"),
    "a negative margin": option("confirm --margin -0.1", "-0.1 is not in the range"),
    "transfer, a margin of nan": Bad(
        arguments=("transfer", "ticket", "--dataset", "digits", "--margin", "nan"), message="nan is not in the range"
    ),
    "a billion seeds": option("confirm --seeds 1000000000", "1000000000 is not in the range 1<=x<=10000"),
    "5,000 digits of seeds": option(f"confirm --seeds {TOO_HUGE}", "is not in the range", absent=TOO_HUGE),
    "a negative rewind": option("stability x/1 --rewind -1", "-1 is not in the range"),
    "half a ticket to keep": option("store --keep-best 0.5", "'0.5' is not a valid integer"),
    # resuming
    "another rewind": option("resume --set pruning.rewind_iteration=999", "that would be another search"),
    "another network, and unknown": option("resume --set model.name=nothing", "that would be another search"),
    "a changeable field, wrongly": option("resume --set search.early_stopping.patience=0", "patience: 0 is not valid"),
}


def contents(folder):
    return {path: (path.is_file() and path.read_bytes(), path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_message(name, tmp_path, request):
    case = CASES[name]
    if case.search:
        request.getfixturevalue("finished_search")
    for path, content in case.files.items():
        if callable(content):
            content(tmp_path / path)
        else:
            (tmp_path / path).write_bytes(content.encode() if isinstance(content, str) else content)
    before = contents(tmp_path)
    started = time.monotonic()
    said = in_process(*case.arguments, cwd=tmp_path, RAY_ADDRESS="")
    assert time.monotonic() - started < MOST_SECONDS
    assert (said.returncode, said.stdout) == (case.code, "")
    assert case.message in said.stderr
    assert len(said.stderr.splitlines()) <= MOST_LINES
    assert case.absent not in said.stderr
    assert "Traceback" not in said.stderr
    assert contents(tmp_path) == before


def test_the_first_three_problems_are_listed_and_the_others_counted(tmp_path):
    (tmp_path / "bad.yaml").write_text(UNKNOWN_KEYS)
    lines = in_process("run", "bad.yaml", cwd=tmp_path).stderr.splitlines()
    assert len(lines) == 4
    assert lines[-1] == "and 3,004 more"  # including the missing keys dataset, model and so on
