"""Bad input is refused quickly, with one message of a few lines and the right exit code, and leaves no files behind.

To add a case, add an entry to `CASES`.
"""

import gzip
import io
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import in_process
from PIL import Image

MOST_LINES = 8
#: The maximum time that a refusal may take. It usually takes milliseconds, but the first one also imports torch.
MOST_SECONDS = 20
HUGE = "9" * 400
#: Python refuses to convert an integer with this many digits to or from text.
TOO_HUGE = "9" * 5000
LONG = "x" * 300
INLINE = ("--engine", "inline")

Content = str | bytes | Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A command that must be refused.

    Attributes:
        arguments: the arguments of `ticket-search`, which runs in a directory that contains only the files that this
            case describes. TICKET stands for the name of a ticket.
        message: text that stderr must contain.
        files: the contents of files in the directory, by path: text, bytes, or a function that creates the file.
        search: whether the directory also contains a finished search, ``finished_search``.
        ticket: a function that changes the bytes of an exported ticket, which the directory contains as ``ticket``.
        damage: a function that is called with the path of ``finished_search`` before the command runs.
        code: the exit code. A command that exits with 0 has repaired the damage. One that exits with 1 may have moved
            damaged files aside, but must not have changed their bytes.
        absent: text that stderr must not contain.
    """

    arguments: tuple[str, ...]
    message: str
    files: Mapping[str, Content] = field(default_factory=dict)
    search: bool = False
    ticket: Callable[[bytes], bytes] | None = None
    damage: Callable[[Path], object] | None = None
    code: int = 2
    absent: str = "Traceback"


def command(arguments, message, **other):
    """Return a case that runs a command in a directory without a finished search."""
    return Bad(arguments=tuple(arguments.split(" ")), message=message, **other)


def setting(value, message, **other):
    """Return a case that runs the shipped search `digits` with one changed setting."""
    return Bad(arguments=("run", "digits", "--set", value), message=message, **other)


def file(text, message, **other):
    """Return a case that runs a search from a file with this content."""
    return Bad(arguments=("run", "bad.yaml"), files={"bad.yaml": text}, message=message, **other)


def option(arguments, message, **other):
    """Return a case that runs a command on a finished search."""
    name, *rest = arguments.split(" ")
    return Bad(arguments=(name, "finished_search", *rest), message=message, search=True, **other)


def resume(value, message):
    """Return a case that resumes a finished search with one changed setting."""
    arguments = ("resume", "finished_search", *INLINE, "--set", value)
    return Bad(arguments=arguments, message=message, search=True)


def damaged(arguments, path, how, message, **other):
    """Return a case that runs a command on a finished search after `how` has damaged its first file matching `path`."""
    return option(arguments, message, damage=lambda search: how(sorted(search.glob(path))[0]), **other)


def transfer(how, message, arguments="--dataset digits", **other):
    """Return a case that transfers a ticket after `how` has changed the bytes of its file."""
    arguments = ("transfer", "ticket", *INLINE, *arguments.split(" "))
    return Bad(arguments=arguments, message=message, ticket=how, **other)


def python(key, source, message, **other):
    """Return a case that sets the field `key` to the function ``mine`` of a user's module with this source."""
    arguments = ("run", "digits", *INLINE, "--set", f"{key}=mine:mine", "--set", "dataset.validation=10")
    return Bad(arguments=arguments, message=message, files={"mine.py": source}, **other)


def data(returned, message, before=""):
    """Return a case whose data set is an expression, which may use `images` (40 of 8x8) and `labels` (0 to 3)."""
    head = "import numpy as np\nimages = np.zeros((40, 8, 8), np.uint8)\nlabels = np.arange(40) % 4\n"
    return python("dataset.name", f"{head}def mine():\n    {before}\n    return {returned}\n", message)


def pairs(images, labels, message):
    """Return a case with a user's data set whose training and test images are the same."""
    return data(f"{{'train': ({images}, {labels}), 'test': ({images}, {labels})}}", message)


def network(made, message, forward="return self.fc(x.flatten(1))", **other):
    """Return a case with a user's network: an expression that may use a class `Net` with this forward pass."""
    head = "import sys, torch\nfrom torch import nn\nclass Net(nn.Module):\n"
    head += "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(64, 10)\n"
    head += f"    def forward(self, x):\n        {forward}\n"
    return python("model.name", f"{head}def mine(image_shape, classes):\n    return {made}\n", message, **other)


def sparse(value, message):
    """Return a case that trains with the executor ``sparse`` and one more changed setting.

    The function ``mine:mine`` returns a network without fully connected layers.
    """
    source = "from torch import nn\n"
    source += "def mine(image_shape, classes): return nn.Sequential(nn.Conv2d(1, classes, 8), nn.Flatten())\n"
    arguments = ("run", "digits", *INLINE, "--set", "training.executor=sparse", "--set", value)
    return Bad(arguments=arguments, message=message, files={"mine.py": source})


def idx(message, number, content, suffix=""):
    """Return a case with MNIST as the data set, where file number `number` (0 to 3) has this content."""
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    files = {f"data/MNIST/raw/{name}": a for name, a in zip(names, (IMAGES, LABELS) * 2, strict=True)}
    del files[f"data/MNIST/raw/{names[number]}"]
    files[f"data/MNIST/raw/{names[number]}{suffix}"] = content
    arguments = ("run", "digits", *INLINE, "--set", "dataset={name: mnist, validation: 10}")
    return Bad(arguments=arguments, message=message, files=files)


def ubyte(array):
    """Return the bytes of an IDX file that contains an array."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


IMAGES, LABELS = ubyte(np.zeros((40, 8, 8))), ubyte(np.arange(40) % 4)


def parquet(message, train, path="d", **files):
    """Return a case with a Parquet data set whose training file contains the bytes `train`."""
    arguments = ("run", "digits", *INLINE, "--set", f"dataset={{name: parquet, path: {path}, validation: 10}}")
    files = {"data/d/train.parquet": train, "data/d/test.parquet": pictures([png()] * 40, range(40)), **files}
    return Bad(arguments=arguments, message=message, files={name: c for name, c in files.items() if c is not None})


def png(mode="L", size=(8, 8)):
    """Return the bytes of a PNG file with a black image."""
    Image.new(mode, size).save(made := io.BytesIO(), "PNG")
    return made.getvalue()


def pictures(images, labels, kind=None, of=None):
    """Return the bytes of a Parquet file with images of type `of` and labels of type `kind`."""
    kind, of = kind or pa.int64(), of or pa.binary()
    rows = pa.array([{"bytes": image} for image in images], pa.struct([("bytes", of)]))
    pq.write_table(pa.table({"image": rows, "label": pa.array(list(labels), kind)}), made := io.BytesIO())
    return made.getvalue()


def million_bytes(path):
    path.write_bytes(b"#" + b" " * 1_000_000)


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"\x00\xffgarbage\n")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def says(text):
    """Return a function that replaces the content of a file with `text`."""
    return lambda path: path.write_text(text)


def with_fields(**fields):
    """Return a function that sets fields in the first line of a JSON Lines file. The value `...` removes a field."""

    def damage(path):
        first, *rest = path.read_text().splitlines(keepends=True)
        changed = {name: value for name, value in {**json.loads(first), **fields}.items() if value is not ...}
        path.write_text("".join([json.dumps(changed) + "\n", *rest]))

    return damage


UNKNOWN_KEYS = "".join(f"key{i}: 1\n" for i in range(3000))
#: A few lines of nested YAML aliases that expand to a billion strings.
BOMB = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
NO_NUMBER = "input should be a valid number"
GOOD = """\
name: good
dataset: {name: digits, validation: 300}
model: {name: lenet_16}
training: {optimizer: {name: adam, lr: 2e-3}, batch_size: 64, iterations: 40, evaluate_every: 20}
space: {pruning_rate: [0.5]}
seeds: [0]
search: {trials: 1}
"""
#: The commands that take a run directory, and the additional arguments that each of them needs.
COMMANDS = {
    **dict.fromkeys(("resume", "stop", "status", "tickets", "confirm", "store"), ""),
    "pull": " new",
    "export": " TICKET out",
    "stability": " TICKET",
}

SUGGESTIONS, LEVELS, ENTRIES = "suggestions.jsonl", "levels/part-00000.parquet", "store"


def every(how):
    """Return a function that applies `how` to every file of a store."""
    return lambda store: [how(path) for path in sorted(store.glob("??/*"))]


CASES = {
    # integers that are too large for any field
    "400 digits for an integer": setting(f"training.batch_size={HUGE}", "...", absent=HUGE),
    "400 digits for a float": setting(f"training.optimizer.lr={HUGE}", NO_NUMBER, absent=HUGE),
    "400 digits in a list": setting(f"space.pruning_rate=[0.5, {HUGE}]", NO_NUMBER, absent=HUGE),
    "400 digits in a range": setting(f"space.rewind_iteration={{low: 0, high: {HUGE}}}", "high: 9999", absent=HUGE),
    "400 digits for a step": setting(f"space.pruning_rate={{low: 0.1, high: 0.5, step: {HUGE}}}", "step: 9999"),
    "400 digits of iterations": setting(f"training.iterations={HUGE}", "is not a training duration", absent=HUGE),
    "400 digits of trajectories": setting(f"search.early_stopping.min_trajectories={HUGE}", "less than or equal"),
    "400 digits of CPUs": setting(f"resources.cpus={HUGE}", NO_NUMBER),
    "400 digits of a seed": setting(f"seeds=[{HUGE}]", "seeds.0: 9999", absent=HUGE),
    "5,000 digits": setting(f"training.batch_size={TOO_HUGE}", "value has 5000 digits", absent=TOO_HUGE),
    "5,000 digits in a file": file(
        f"seeds: [{TOO_HUGE}]", "a value cannot be read: Exceeds the limit", absent="sys.set"
    ),
    "5,000 digits of trials": Bad(arguments=("run", "digits", "--trials", TOO_HUGE), message="...", absent=TOO_HUGE),
    "400 digits of trials": Bad(arguments=("run", "digits", "--trials", HUGE), message="...", absent=HUGE),
    # numbers that would take too much time or memory
    "a rate of 1e-12": setting(
        "space.pruning_rate=[1.0e-12]",
        "pruning_rate 1e-12 needs 3912023005426 levels to reach density 0.02, more than 10000; raise pruning_rate",
    ),
    "the least rate there is": setting("space.pruning_rate=[5.0e-324]", "needs 1000000000000000000 levels"),
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
    # floats in place of integers
    "60.0 iterations": setting("training.iterations=60.0", "60.0 is not a training duration: write 60, not 60.0"),
    "a batch of 60.0": setting("training.batch_size=60.0", "60.0 is not valid: write 60, not 60.0"),
    # networks that are too large
    "layers of a million": setting("model.name=lenet_1000000_1000000", "a layer must have 1 to 999999 units"),
    "layers of 5,000 digits": setting(f"model.name=lenet_{TOO_HUGE}", "a layer must have 1 to 999999", absent=TOO_HUGE),
    "10^12 weights": setting(
        "model.name=lenet_999999_999999", "999998000001 weights between hidden layers exceed the maximum of"
    ),
    "20,000 layers": setting("model.name=resnet20000", "'resnet20000': a ResNet has at most 9998 layers"),
    "a ResNet of 5,000 digits": setting(f"model.name=resnet{TOO_HUGE}", "at most 9998 layers", absent=TOO_HUGE),
    # many problems, or one very long value
    "3,000 unknown keys": file(UNKNOWN_KEYS, "and 3,004 more"),
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
    "an endless device": Bad(arguments=("run", "/dev/zero"), message="'/dev/zero': it is not a regular file"),
    "a folder": Bad(
        arguments=("run", "folder"), files={"folder": Path.mkdir}, message="'folder': it is not a regular file"
    ),
    "a megabyte": file(million_bytes, "1000001 bytes; give at most 1000000"),
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
    "another network, and unknown": option("resume --set model.name=nothing", "unknown model 'nothing'"),
    "a changeable field, wrongly": option("resume --set search.early_stopping.patience=0", "patience: 0 is not valid"),
    # more cases of YAML
    "nothing": file("", "a mapping of keys to values, not None"),
    "a comment alone": file("# x\n", "a mapping of keys to values, not None"),
    "a list": file("- a\n", "not ['a']"),
    "a word": file("hello\n", "not 'hello'"),
    "JSON, cut": file('{"name": ', "line 1, column 10: not valid YAML"),
    "binary": file(bytes(range(256)), "can't decode byte 0x80"),
    "UTF-16": file(GOOD.encode("utf-16"), "can't decode byte 0xff"),
    "UTF-16 without a mark": file(GOOD.encode("utf-16-le"), "unacceptable character #x0000"),
    "UTF-32": file(GOOD.encode("utf-32"), "can't decode byte 0xff"),
    "Latin-1": file("name: gö\n".encode("latin-1"), "can't decode byte 0xf6"),
    "a BOM, then nonsense": file(b"\xef\xbb\xbf: [", "line 1, column 4: not valid YAML"),
    "NUL": file(GOOD + "\0", "unacceptable character #x0000"),
    "a tab": file(GOOD + "\tx: 3\n", r"line 8, column 1: not valid YAML: found character '\t'"),
    "a tab to indent": file("space:\n\tname: x\n", r"line 2, column 1: not valid YAML: found character '\t'"),
    "indents": file(" a: 1\nb: 2\n", "line 2, column 1: not valid YAML"),
    "two colons": file("a: b: c\n", "mapping values are not allowed here"),
    "no closing bracket": file("a: [1,\nb: }", "line 2, column 4: not valid YAML"),
    "no closing quote": file('name: "x\n', "found unexpected end of stream"),
    "an unknown escape": file('name: "\\q"\n', "found unknown escape character 'q'"),
    "half a surrogate": file('name: "\\ud800"\n', r"'\ud800' cannot name a directory"),
    "beyond Unicode": file('name: "\\U00110000"\n', "not valid YAML: a value cannot be read"),
    "a reserved character": file("name: @x\n", "found character '@' that cannot start any token"),
    "an undefined alias": file("name: *x\n", "found undefined alias 'x'"),
    "an anchor twice": file("name: &a 1\nmodel: &a 2\n", "name: 1 is not valid"),
    "an alias of itself": file(GOOD.replace("good", "&a [*a]"), "name: [[[[...]]]] is not valid"),
    "a space in itself": file(GOOD.replace("[0.5]", "&a {low: *a, high: 1}"), "low: {'high': 1, 'low': "),
    "a key that is a number": file(GOOD + "1: 2\n", "keys should be strings"),
    "a key that is null": file(GOOD + "null: 2\n", "keys should be strings"),
    "a key that is a list": file(GOOD + "[a]: 2\n", "('a',) is not valid: keys should be strings"),
    "a key that is a mapping": file(GOOD + "{a: b}: 2\n", "found unhashable key"),
    "a field that is a number": file(GOOD.replace("pruning_rate", "1"), "unknown field to search '1'"),
    "a section under both names": file(GOOD + "trajectory: {}\npruning: {}\n", "'trajectory' is the old name"),
    "not a boolean": file("name: !!bool x\n", "a value cannot be read: 'x'"),
    "not an integer": file("name: !!int x\n", "a value cannot be read: invalid literal for int()"),
    "not a date": file("name: 2024-99-99\n", "a value cannot be read: month must be in 1..12"),
    "not a hexadecimal number": file(GOOD.replace("64", "0x"), "'0x' is not valid"),
    "bytes for a name": file(GOOD.replace("good", "!!binary aGVsbG8="), "b'hello' is not valid"),
    "a set for a list": file(GOOD.replace("seeds: [0]", "seeds: !!set {0}"), "seeds: {0} is not valid"),
    "another tag of one's own": file("!x 1\n", "could not determine a constructor for the tag '!x'"),
    "a version of YAML to come": file("%YAML 9.9\n---\n" + GOOD, "found incompatible YAML document"),
    "16,000 bits": file(GOOD.replace("64", f"0x{'f' * 4000}"), "an integer of thousands of digits is not valid"),
    "a line of 100 kB": file(f"name: {'x' * 100_000}\n", "cannot name a directory", absent=LONG),
    "600 blocks deep": file("".join(" " * i + "a:\n" for i in range(600)), "maximum recursion depth exceeded"),
    "merges of merges": file("a: &a {x: 1}\nb: {<<: [*a, *a]}\nname: 3\n", "dataset: is missing"),
    "missing sections": file("name: x\n", "and 3 more"),
    "nan": file(GOOD.replace("2e-3", ".nan"), "nan is not valid: input should be a finite number"),
    "a float that is infinite": file(
        GOOD.replace("2e-3", "1e999"), "inf is not valid: input should be a finite number"
    ),
    "a float that is 0": file(GOOD.replace("2e-3", "1e-999"), "0.0 is not valid: input should be greater than 0"),
    "a date for a name": setting("name=2024-01-01", "datetime.date(2024, 1, 1) is not valid"),
    "a version for a name": setting("name=1.0", "name: 1.0 is not valid: input should be a valid string"),
    # --set
    "--set of nothing": setting("", "--set '' is not KEY=VALUE"),
    "--set of an equals sign": setting("=", "--set '=' is not KEY=VALUE"),
    "--set without a key": setting("=3", "--set '=3' is not KEY=VALUE"),
    "--set without a value": setting("training.batch_size=", "training.batch_size: None is not valid"),
    "--set of dots": setting("..=3", "unknown key ''"),
    "--set of half a list": setting("seeds=[", "--set seeds, line 1, column 2: not valid YAML"),
    "--set of an alias": setting("name=*a", "--set name, line 1, column 1: not valid YAML: found undefined alias 'a'"),
    "--set of an index": setting("seeds.0=3", "seeds: {'0': 3} is not valid: input should be a list"),
    "--set below a word": setting("name.x=3", "name: {'x': 3} is not valid"),
    "--set of a NUL": setting("name=\0", "--set name: not valid YAML: unacceptable character"),
    "--set of half a character": setting("name=\udcff", "--set name: not valid YAML: unacceptable character"),
    "--set of two lines": setting("name=a\nb", "'a b' cannot name a directory"),
    "--set of a quoted number": setting(
        "training.batch_size='64'", "'64' is not valid: input should be a valid integer"
    ),
    "--set of a merge key": setting("<<=3", "unknown key '<<'"),
    "--set of a section": setting("training=[]", "training: [] is not valid: input should be a mapping"),
    "--set of null": setting("search=null", "search: None is not valid"),
    "--set of a list for the space": setting("space=[1]", "space: [1] is not valid: input should be a mapping"),
    "--set of a section to search": setting("space.dataset=[digits]", "unknown field to search 'dataset'"),
    "--set of a field below a field": setting("space.training.optimizer.lr.x=[1]", "training.optimizer.lr: {'x': 1}"),
    "--set of a value without a list": setting("space.pruning_rate=0.5", "0.5 is neither a list of values nor a range"),
    "--set of a mapping in a list": setting("space.pruning_rate=[{a: 1}]", "{'a': 1} is not valid"),
    "--set of a range of words": setting("space.strategy={low: 0, high: 1}", "pruning.strategy: 0 is not valid"),
    "--set of nan in a range": setting("space.pruning_rate={low: .nan, high: 1}", "low: nan is not valid"),
    "--set of nan for a step": setting("space.pruning_rate={low: 0.1, high: 1, step: .nan}", "step: nan is not valid"),
    "--set of inf in a list": setting("space.pruning_rate=[.inf]", "inf is not valid: input should be a finite number"),
    "--set of nan twice": setting("space.pruning_rate=[.nan, .nan]", "[nan, nan] contains duplicates"),
    "--set of a store": setting("store=3", "store: 3 is not valid: input should be a valid string"),
    "--set of a store without a bucket": setting("store=s3://", "names no bucket"),
    "--set of a batch too many": setting("training.batch_size=1078", "1078 is more than the 1077 training images"),
    "--set of half an epoch": setting("training.iterations=0.5ep", "'0.5ep' is not a training duration"),
    "--set of a fullwidth epoch": setting("training.iterations=\uff11ep", "is not a training duration"),
    "--set of CPUs": setting("resources.cpus=1000", "resources.cpus: 1000 is more than this machine"),
    "--set of GPUs": setting("resources.gpus=999", "resources.gpus: 999 is more than this machine"),
    "--set of no validation images": setting("dataset.validation=0", "dataset.validation: 0 is not valid"),
    "--set of validation images alone": setting("dataset.validation=1437", "1437 leaves none of the 1437"),
    "--set of a ticket's key": setting("pruning.ticket=abc", "'abc' is not a ticket key"),
    "--set of a ticket not there": setting(f"pruning.ticket={'a' * 32}", "is not in the level store"),
    # commands and their options
    "no such command": command("nothing", "No such command 'nothing'"),
    "no such option": command("--nope", "No such option '--nope'"),
    "a space and more": command("run digits more", "Got unexpected extra argument (more)"),
    "a space not there": command("run nowhere", "no search space 'nowhere'"),
    "an empty space": command("run ", "no search space ''"),
    "a space in object storage": command("run s3://b/x.yaml", "no search space 's3://b/x.yaml'"),
    "no trials": command("run digits --trials 0", "0 is not in the range"),
    "half a trial": command("run digits --trials 0.5", "'0.5' is not a valid integer"),
    "another engine": command("run digits --engine quick", "'quick' is not one of 'inline', 'processes', 'ray'"),
    "an address without Ray": command("run digits --engine inline --address x", "--address 'x' is for engine 'ray'"),
    "an empty output": command("run digits --output ", "'' is not a directory"),
    "a NUL in the output": command("run digits --output a\0b", r"'a\x00b' is not a directory"),
    "an output of 300 letters": command(f"run digits --output {LONG}", "File name too long", absent=LONG),
    "an output in /proc": command("run digits --output /proc/run", "cannot write to '/proc/run'"),
    "an output in a file": command("run digits --output f/g", "f' is not a directory", files={"f": ""}),
    "an output that is a file": command("run digits --output f", "Directory 'f' is a file", files={"f": ""}),
    "an output that is a FIFO": command("run digits --output f", "is not a directory", files={"f": os.mkfifo}),
    "an output of something else": command(
        "run digits --output d", "is not empty and contains no search", files={"d/f": ""}
    ),
    "status of two": option("status x", "Got unexpected extra argument (x)"),
    "an output that is a broken link": command(
        "run digits --output l", "is broken", files={"l": lambda p: p.symlink_to("nowhere/x")}
    ),
    "another search in the output": Bad(
        arguments=("run", "digits", *INLINE, "--output", "finished_search"),
        message="contains another search",
        search=True,
    ),
    "a bucket without a name": command("run digits --output s3:///x", "names no bucket"),
    "another protocol": command("run digits --output ftp://h/x", "Unrecognized filesystem type"),
    "a fragment": command("run digits --output s3://b/x#y", "contains a '#'"),
    "an unknown option of S3": command("run digits --output s3://b/x?foo=1", "unknown option 'foo'"),
    "a store in /proc": command("run digits --engine inline --store /proc/x", "cannot write to '/proc/x'"),
    "a store that is a file": command("run digits --store f", "Directory 'f' is a file", files={"f": ""}),
    "an empty store": command("run digits --store ", "'' is not a directory"),
    "data in object storage": command("run digits --data-dir s3://b", "'s3://b' is not a local directory"),
    "runs that are a file": command("run digits --engine inline", "runs' is not a directory", files={"runs": ""}),
    "confirm, no seeds": option("confirm --seeds 0", "0 is not in the range"),
    "confirm, no tickets": option("confirm --top 0", "0 is not in the range"),
    "confirm, draws": option("confirm --draws x", "'x' is not a valid integer"),
    "confirm, a margin of words": option("confirm --margin x", "'x' is not a valid float"),
    "confirm, an address": option("confirm --engine inline --address x", "--address 'x' is for engine 'ray'"),
    "stability, one copy": option("stability TICKET --copies 1", "1 is not in the range"),
    "stability, two points": option("stability TICKET --points 2", "2 is not in the range"),
    "stability, a late rewind": option(
        "stability TICKET --rewind 40", "40 is not before the end of training at iteration 40"
    ),
    "stability, no ticket": option("stability x", "unknown ticket 'x'"),
    "stability, a dense network": option("stability 0/0", "unknown ticket '0/0'"),
    "export, no ticket": option("export x out", "unknown ticket 'x'"),
    "export, 300 letters": option(f"export {LONG} out", "unknown ticket 'xxx", absent=LONG),
    "export, a file that is there": option("export TICKET f", "'f' already exists", files={"f": ""}),
    "export, a folder": option("export TICKET finished_search", "'finished_search' is a directory"),
    "export, a folder not there": option("export TICKET no/such", "there is no folder"),
    "export, below a file": option("export TICKET f/g", "is a file, not a folder", files={"f": ""}),
    "export, a long name": option(f"export TICKET {LONG}", "give a name of at most 200 bytes", absent=LONG),
    "export, object storage": option("export TICKET s3://b/x", "'s3://b/x' is not a local file"),
    "export, a broken link": option("export TICKET l", "exists", files={"l": lambda p: p.symlink_to("no")}),
    "store, fewer than none": option("store --keep-best=-1", "No such option '-1'"),
    "pull onto something else": option("pull d", "is neither empty nor a copy of", files={"d/f": ""}),
    "pull onto a file": option("pull f", "Directory 'f' is a file", files={"f": ""}),
    "pull below a file": option("pull f/g", "f' is not a directory", files={"f": ""}),
    "pull to object storage": option("pull s3://b", "'s3://b' is not a local directory"),
    "stop what does not run": option("stop", "no search is running in"),
    **{f"{c}, nothing there": command(f"{c} d{rest}", " a run directory") for c, rest in COMMANDS.items()},
    **{
        f"{c}, an empty folder": command(f"{c} d{rest}", " a run directory", files={"d": Path.mkdir})
        for c, rest in COMMANDS.items()
    },
    **{
        f"{c}, no run directory": command(f"{c} d{rest}", " a run directory", files={"d/f": ""})
        for c, rest in COMMANDS.items()
    },
    **{
        f"{c}, a FIFO": command(f"{c} d{rest}", " a run directory", files={"d": os.mkfifo})
        for c, rest in COMMANDS.items()
    },
    **{
        f"{c}, a file": command(f"{c} d{rest}", " a run directory" if c == "pull" else "'d' is a file", files={"d": ""})
        for c, rest in COMMANDS.items()
    },
    **{f"{c}, 300 letters": command(f"{c} {LONG}{rest}", "name too long", absent=LONG) for c, rest in COMMANDS.items()},
    # resuming with changed fields
    "resume, nan": resume("training.optimizer.lr=.nan", "training.optimizer.lr: nan is not valid"),
    "resume, out of bounds": resume("training.optimizer.lr=-1", "training.optimizer.lr: -1 is not valid"),
    "resume, inf for the tolerance": resume("search.tolerance=.inf", "search.tolerance: inf is not valid"),
    "resume, no seeds": resume("seeds=[]", "seeds: [] is not valid"),
    "resume, other seeds": resume("seeds=[0]", "--set seeds=[0]: that would be another search"),
    "resume, another batch": resume("training.batch_size=32", "that would be another search"),
    "resume, another name": resume("name=other", "--set name=other: that would be another search"),
    "resume, other data": resume("dataset.validation=200", "that would be another search"),
    "resume, another sampler": resume("search.sampler=x", "search.sampler: 'x' is not valid"),
    "resume, an unknown key": resume("foo=1", "foo: unknown key 'foo'"),
    "resume, nearly a changeable key": resume("search.trialsx=1", "unknown key 'trialsx'"),
    "resume, no setting": resume("nothing", "--set 'nothing' is not KEY=VALUE"),
    "resume, no YAML": resume("name=[", "not valid YAML"),
    "resume, no trials": resume("search.trials=0", "search.trials: 0 is not valid"),
    "resume, more CPUs": resume("resources.cpus=1000", "1000 is more than this machine has"),
    "resume, a store in /proc": resume("store=/proc/x", "cannot write to '/proc/x'"),
    "resume, fewer of a grid": option("resume --trials 8", "--trials 8: the search already runs its whole grid"),
    # data sets
    "data: nothing": data("None", 'must be a dict {"train": (images, labels), '),
    "data: no test images": data("{'train': (images, labels)}", "KeyError: 'test'"),
    "data: no labels": data("{'train': (images,), 'test': (images,)}", "IndexError"),
    "data: it raises": data("1 / 0", "the function raised ZeroDivisionError: division by zero"),
    "data: it exits": data("sys.exit(0)", "the function raised SystemExit: 0", before="import sys"),
    "data: it raises what raises": data(
        "f()", "raised Odd (", before="Odd = type('Odd', (Exception,), {'__str__': 3})\n    def f(): raise Odd"
    ),
    "data: a truncated npz": data("np.load(io.BytesIO(b'PK\\3\\4'))", "raised BadZipFile", before="import io"),
    "data: images that need a gradient": data(
        "{'train': (torch.zeros(40, 8, 8, requires_grad=True), labels)}", "requires grad", before="import torch"
    ),
    "data: channels last": pairs("np.zeros((40, 8, 8, 3), np.uint8)", "labels", "images.transpose(0, 3, 1, 2)"),
    "data: flat images": pairs("images.reshape(40, 64)", "labels", "images have the shape [40, 64]"),
    "data: no images": pairs("images[:0]", "labels[:0]", "images have the shape [0, 8, 8]"),
    "data: images of no height": pairs("images[:, :0]", "labels", "images have the shape [40, 0, 8]"),
    "data: integers for images": pairs("images.astype(int)", "labels", "images are int64"),
    "data: objects for images": pairs("images.astype(object)", "labels", "images are object"),
    "data: nan in images": pairs("images * np.nan", "labels", "images contain nan or infinity"),
    "data: ragged images": pairs("[[1], [1, 2]]", "labels", "inhomogeneous shape"),
    "data: float labels": pairs("images", "labels * 1.0", "labels are float64; give integers, starting at 0"),
    "data: words for labels": pairs("images", "labels.astype(str)", "give integers, starting at 0"),
    "data: a label too few": pairs("images", "labels[1:]", "labels have the shape [39]; 40 images need the shape [40]"),
    "data: one-hot labels": pairs("images", "np.eye(4)[labels]", "labels have the shape [40, 4]"),
    "data: negative labels": pairs("images", "labels - 1", "a label is -1; number the classes from 0"),
    "data: huge labels": pairs("images", "labels * 10**6", "label 3000000 is too large for 80 images"),
    "data: labels beyond int64": pairs("images", "labels.astype('u8') << 62", "a label is 13835058055282163712"),
    "data: one class": pairs("images", "labels * 0", "all 40 training labels are 0"),
    "data: other classes": data(
        "{'train': (images, labels), 'test': (images, labels + 4)}", "no test label (4, 5, 6, 7)"
    ),
    "data: other sizes": data(
        "{'train': (images, labels), 'test': (images[:, 1:], labels)}", "give both the same type and shape"
    ),
    "data: fewer than for validation": pairs("images[:10]", "labels[:10]", "10 leaves none of the 10 training images"),
    "data: fewer than a batch": pairs("images", "labels", "is more than the 30 training images"),
    "MNIST: not there": command("run digits --engine inline --set dataset.name=mnist", "dataset 'mnist' not found"),
    "MNIST: a file missing": idx("dataset 'mnist' not found", 3, b"", ".other"),
    "MNIST: a byte too few": idx("has 2559 bytes after its header instead of 2560", 0, IMAGES[:-1]),
    "MNIST: a byte too many": idx("has 41 bytes after its header instead of 40", 1, LABELS + b"x"),
    "MNIST: an empty file": idx("begins with ''", 0, b""),
    "MNIST: half a header": idx("ends within its header, after 10 bytes", 0, IMAGES[:10]),
    "MNIST: a page of HTML": idx("begins with '3c68746d'", 0, "<html>404</html>"),
    "MNIST: labels for images": idx("begins with '00000801'", 2, LABELS),
    "MNIST: half a gzip": idx("ended before the end-of-stream marker", 0, gzip.compress(IMAGES)[:-9], ".gz"),
    "MNIST: no gzip": idx("Not a gzipped file", 0, "garbage", ".gz"),
    "MNIST: 10^28 images": idx("instead of 79228162458924105385300197375", 0, IMAGES[:4] + b"\xff" * 12),
    "MNIST: a folder for a file": idx("dataset 'mnist' not found", 0, Path.mkdir),
    "CIFAR-10: cut files": Bad(
        arguments=("run", "digits", *INLINE, "--set", "dataset.name=cifar10"),
        message="dataset 'cifar10' not found in",
        files={f"data/cifar-10-batches-py/data_batch_{i}": b"\x80\x02" for i in range(1, 6)},
    ),
    "Parquet: no folder": parquet("nowhere' is not a folder", None, path="nowhere"),
    "Parquet: 300 letters": parquet("dataset.path: cannot list 'xxx", None, path=LONG),
    "Parquet: no training images": parquet("contains no train", None),
    "Parquet: cut": parquet("cannot read '", pictures([png()] * 40, range(40))[:-9]),
    "Parquet: empty": parquet("cannot read '", b""),
    "Parquet: no rows": parquet("contain no rows", pictures([], [])),
    "Parquet: names that are no UTF-8": parquet("cannot read '", pictures([png()], [1]).replace(b"label", b"lab\xffl")),
    "Parquet: other columns": parquet("it needs image", pictures([png()], [1]).replace(b"label", b"labem")),
    "Parquet: float labels": parquet("label: double; it needs", pictures([png()], [1.0], pa.float64())),
    "Parquet: no labels": parquet("1 of its labels are null", pictures([png()], [None])),
    "Parquet: numbers for images": parquet("it needs image: struct{bytes", pictures([1], [1], of=pa.int64())),
    "Parquet: words for images": parquet("it needs image: struct{bytes", pictures(["a"], [1], of=pa.string())),
    "Parquet: no image": parquet("row 0: image.bytes is null", pictures([None], [1])),
    "Parquet: a broken image": parquet("row 0: the image cannot be decoded", pictures([b"x"], [1])),
    "Parquet: a bomb of an image": parquet("could be decompression bomb", pictures([png("1", (20_000, 20_000))], [1])),
    "Parquet: an alpha channel": parquet("the image has mode 'RGBA'", pictures([png("RGBA")], [1])),
    "Parquet: images of two sizes": parquet("row 1: the image is 7x8", pictures([png(), png(size=(7, 8))], [0, 1])),
    # a user's network
    "network: no module": setting("model.name=nowhere_at_all:mine", "No module named 'nowhere_at_all'"),
    "network: a syntax error": python("model.name", "def mine(:\n", "importing 'mine' failed: SyntaxError"),
    "network: NUL in the source": python("model.name", "\0", "importing 'mine' failed"),
    "network: its import raises": python("model.name", "1 / 0\n", "failed: ZeroDivisionError: division by zero ("),
    "network: its import exits": python(
        "model.name", "import sys; sys.exit(0)\n", "importing 'mine' failed: SystemExit"
    ),
    "network: its import misses one": python(
        "model.name", "import nowhere_at_all\n", "No module named 'nowhere_at_all'"
    ),
    "network: no function": python("model.name", "x = 1\n", "the module has no function 'mine'"),
    "network: nothing to call": python("model.name", "mine = 3\n", "the module has no function 'mine'"),
    "network: a module that raises": python(
        "model.name", "def __getattr__(name): return 1 / 0\n", "no function 'mine'"
    ),
    "network: other arguments": python("model.name", "def mine(): pass\n", "unexpected keyword argument 'image_shape'"),
    "network: built in": setting("model.name=builtins:print", "has no source file"),
    "network: None": network("None", "the function returned None, not a torch.nn.Module"),
    "network: a list of networks": network("[Net()]", "the function returned [Net("),
    "network: it cannot be built": network("1 / 0", "the function raised ZeroDivisionError"),
    "network: building it exits": network("sys.exit(0)", "the function raised SystemExit: 0"),
    "network: nothing to prune": network("nn.Flatten()", "Flatten has nothing to prune"),
    "network: an embedding": network("nn.Embedding(10, 10)", "Embedding has nothing to prune"),
    "network: lazy": network("nn.Sequential(nn.Flatten(), nn.LazyLinear(10))", "has no shape yet"),
    "network: half precision": network("Net().half()", "cannot take images of 1 x 8 x 8: RuntimeError"),
    "network: it raises": network("Net()", "cannot take images of 1 x 8 x 8: ZeroDivisionError", "1 / 0"),
    "network: it exits": network("Net()", "cannot take images of 1 x 8 x 8: SystemExit: 3", "sys.exit(3)"),
    "network: it exits well": network("Net()", "cannot take images of 1 x 8 x 8: SystemExit", "sys.exit()"),
    "network: it never ends": network("Net()", "maximum recursion depth exceeded", "return self(x)"),
    "network: no output": network("Net()", "in training mode returned None for 2 images", "pass"),
    "network: two outputs": network(
        "Net()", "in training mode returned (tensor(", "y = self.fc(x.flatten(1)); return y, y"
    ),
    "network: too few outputs": network(
        "Net()", "returned torch.float32 [2, 9]", "return self.fc(x.flatten(1))[:, 1:]"
    ),
    "network: integers": network("Net()", "returned torch.int64 [2]", "return self.fc(x.flatten(1)).argmax(1)"),
    "network: nothing in evaluation": network(
        "Net()", "in evaluation mode returned None", "return self.fc(x.flatten(1)) if self.training else None"
    ),
    "network: no such output layer": network(
        "(setattr(n := Net(), 'output_layer', 'no'), n)[1]", "output_layer is 'no'"
    ),
    "network: a state of its own": network(
        "type('Own', (Net,), {'get_extra_state': lambda s: {}})()", "its state dict has {} as '_extra_state'"
    ),
    "executor: None": python("training.executor", "def mine(): pass\n", "the function returned None"),
    "executor: it exits": python("training.executor", "def mine(): raise SystemExit\n", "raised SystemExit"),
    "executor: sparse in bf16": sparse("training.precision=bf16", "computes in fp32, but training.precision is 'bf16'"),
    "executor: sparse with pruned values": sparse(
        "pruning.reinit_pruned=initial", "pruning.reinit_pruned 'initial' gives the pruned ones values"
    ),
    "executor: sparse without fully connected layers": sparse(
        "model.name=mine:mine", "but model 'mine:mine' has none; give executor 'plain' or 'auto'"
    ),
    "executor: unknown": setting("training.executor=spare", "did you mean 'sparse'"),
    "task: None": python("task", "def mine(): pass\n", "the function returned None"),
    "task: it raises": python("task", "def mine(): 1 / 0\n", "raised ZeroDivisionError"),
    # tickets
    "ticket: not there": command("transfer t --dataset digits", "ticket file 't' does not exist"),
    "ticket: a folder": command("transfer t --dataset digits", "'t' is a directory", files={"t": Path.mkdir}),
    "ticket: a FIFO": command("transfer t --dataset digits", "not a regular file", files={"t": os.mkfifo}),
    "ticket: endless": command("transfer /dev/zero --dataset digits", "not a regular file"),
    "ticket: empty": transfer(lambda b: b"", "'ticket' is not a ticket"),
    "ticket: garbage": transfer(lambda b: b"garbage", "'ticket' is not a ticket"),
    "ticket: half": transfer(lambda b: b[: len(b) // 2], "'ticket' is not a ticket"),
    "ticket: a byte too few": transfer(lambda b: b[:-1], "'ticket' is not a ticket"),
    "ticket: a byte too many": transfer(lambda b: b + b"x", "'ticket' is not a ticket"),
    "ticket: a huge header": transfer(lambda b: b"\xff" * 8 + b[8:], "'ticket' is not a ticket"),
    "ticket: a flipped bit": transfer(lambda b: b[:-1] + bytes([b[-1] ^ 1]), "checksum does not match"),
    "ticket: flipped metadata": transfer(lambda b: b.replace(b"lenet_16", b"lenet_17"), "checksum does not match"),
    "ticket: somebody else's": transfer(lambda b: b"\x08\0\0\0\0\0\0\0{}      ", "has no key 'ticket'"),
    "ticket: of a version to come": transfer(
        lambda b: b.replace(b"ticket.1", b"ticket.2"), "is 'ticket_search.ticket.2'"
    ),
    "ticket: twice": transfer(lambda b: b, "the same ticket as another file", arguments="ticket --dataset digits"),
    "ticket: no data set": transfer(lambda b: b, "Missing option '--dataset'", arguments="--seeds 1"),
    "ticket: an unknown data set": transfer(lambda b: b, "unknown dataset 'x'", arguments="--dataset x"),
    "ticket: no seeds": transfer(lambda b: b, "0 is not in the range", arguments="--dataset digits --seeds 0"),
    "ticket: another network": transfer(
        lambda b: b, "belongs to the network 'lenet_16'", arguments="--dataset digits --set model.name=lenet_8"
    ),
    "ticket: nan": transfer(
        lambda b: b, "lr: nan is not valid", arguments="--dataset digits --set training.optimizer.lr=.nan"
    ),
    "ticket: another space": transfer(
        lambda b: b,
        "the space of a transfer must contain only its tickets",
        arguments="--dataset digits --set space.pruning_rate=[0.5]",
    ),
    # a damaged run directory
    "search.yaml: half": damaged("status", "search.yaml", half, "search.yaml, line"),
    "search.yaml: empty": damaged("resume", "search.yaml", empty, "search.yaml: a search space is a mapping"),
    "search.yaml: garbage": damaged("tickets", "search.yaml", garbage, "search.yaml' is damaged"),
    "search.yaml: missing": damaged("store", "search.yaml", Path.unlink, "neither a run directory nor a level store"),
    "search.yaml: a FIFO": damaged("status", "search.yaml", pipe, "it is not a regular file", code=1),
    "search.yaml: a word": damaged(
        "export TICKET out", "search.yaml", says("x"), "a mapping of keys to values, not 'x'"
    ),
    "run.json: half": damaged("store", "run.json", half, "run.json' is damaged"),
    "run.json: empty": damaged("resume --engine inline", "run.json", empty, "run.json' is damaged"),
    "run.json: a number": damaged("store", "run.json", says("3"), "run.json' is damaged"),
    "run.json: a flipped bit": damaged("resume --engine inline", "run.json", garbage, "run.json' is damaged"),
    "suggestions: empty": damaged("export TICKET out", SUGGESTIONS, empty, "it lacks the trajectory '"),
    "suggestions: missing": damaged("confirm --engine inline", SUGGESTIONS, Path.unlink, "it lacks the trajectory '"),
    "suggestions: garbage": damaged("resume --engine inline", SUGGESTIONS, garbage, "suggestions.jsonl' is damaged"),
    "suggestions: a number": damaged("store", SUGGESTIONS, says("3\n"), "suggestions.jsonl' is damaged"),
    "suggestions: other order": damaged(
        "store", SUGGESTIONS, with_fields(number=7), "line 1 contains suggestion 7 instead of 0"
    ),
    "suggestions: no values": damaged(
        "store", SUGGESTIONS, with_fields(values=3), "its values must be of type dict, not 3"
    ),
    "suggestions: an odd name": damaged(
        "store", SUGGESTIONS, with_fields(trajectory_id=3), "its trajectory_id must be of type str, not 3"
    ),
    "suggestions: other fields": damaged(
        "resume --engine inline", SUGGESTIONS, with_fields(values={"x": 1}), "{'x': 1}, which are not in the space"
    ),
    "suggestions: other values": damaged(
        *("resume --engine inline", SUGGESTIONS, with_fields(values={"pruning_rate": 9, "rewind_iteration": 0})),
        "which are not in the space",
    ),
    "levels: half": damaged("status", LEVELS, half, "part-00000.parquet' is damaged"),
    "levels: empty": damaged("tickets", LEVELS, empty, "part-00000.parquet' is damaged (it is empty)"),
    "levels: garbage": damaged("export TICKET out", LEVELS, garbage, "part-00000.parquet' is damaged"),
    "levels: missing": damaged("status", LEVELS, Path.unlink, "it has no table levels/"),
    "levels: another table": damaged(
        "tickets",
        LEVELS,
        lambda p: shutil.copy(p.parents[1] / "curves" / p.name, p),
        "is not the levels table of a search",
    ),
    "levels: somebody else's": damaged(
        "status", LEVELS, lambda p: pq.write_table(pa.table({"x": [1]}), p), "is not a table of ticket_search"
    ),
    "levels: a chunk lost": damaged(
        "status", LEVELS, lambda p: shutil.copy(p, p.with_name("part-00009.parquet")), "part-00001.parquet' is missing"
    ),
    "trajectories: half": damaged("status", "trajectories/part*", half, "part-00000.parquet' is damaged"),
    "curves: empty": damaged("status", "curves/part*", empty, "part-00000.parquet' is damaged"),
    "layers: garbage": damaged("confirm", "layers/part*", garbage, "part-00000.parquet' is damaged"),
    "levels: half, and resumed": damaged("resume --engine inline", LEVELS, half, "rows will be rebuilt", code=0),
    "trajectories: empty, and resumed": damaged(
        "resume --engine inline", "trajectories/part*", empty, "rows will be rebuilt", code=0
    ),
    "events: no time": damaged("store --dry-run", "events/*", with_fields(time="x"), "", code=0),
    "events: no level": damaged("store --dry-run", "events/*", with_fields(event="level_finished"), "", code=0),
    "events: no key": damaged("store --dry-run", "events/*", with_fields(event="level_started", level=0), "", code=0),
    "events: garbage": damaged("store --dry-run", "events/*", garbage, "", code=0),
    "events: odd, and resumed": damaged(
        *("resume --engine inline", "events/*"),
        lambda p: (with_fields(event="trajectory_ended")(p), empty(p.parents[1] / LEVELS)),
        "rows will be rebuilt",
        code=0,
    ),
    "store's note: half": damaged("store", "store/searches/*", half, "it is unknown which search uses the store"),
    "store's note: a number": damaged(
        "store", "store/searches/*", says("3"), "it is unknown which search uses the store"
    ),
    "copies: garbage": damaged(
        "store",
        "run.json",
        lambda p: (p.parent / "copies").mkdir() or says("x")(p.parent / "copies/a-1.json"),
        "it is unknown which copies it lists",
    ),
    "store: a file": damaged(
        *("resume --engine inline", "store", lambda p: (shutil.rmtree(p), p.write_text(""))),
        "store' is not a directory",
    ),
    "store: gone": damaged("export TICKET out", "store", shutil.rmtree, "is no longer in the store", code=1),
    **{
        f"entry: {how.__name__}": damaged("export TICKET out", ENTRIES, every(how), "was damaged in the store", code=1)
        for how in (half, empty, garbage, flip)
    },
    "entry: a FIFO": damaged("export TICKET out", ENTRIES, every(pipe), "it is not a regular file", code=1),
}


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def listing(folder):
    return sorted(folder.rglob("*"))


@pytest.fixture(scope="module")
def ticket_file(_finished_search, tmp_path_factory):
    """The bytes of an exported ticket."""
    path = tmp_path_factory.mktemp("ticket") / "ticket"
    said = in_process("export", _finished_search, ticket_of(_finished_search), path)
    assert said.returncode == 0, said.stderr
    return path.read_bytes()


def ticket_of(search):
    """Return the name of a ticket of a search."""
    return json.loads((search / SUGGESTIONS).read_text().splitlines()[0])["trajectory_id"] + "/1"


@pytest.fixture
def fresh_modules(tmp_path, monkeypatch):
    """After a test, remove from `sys.modules` the modules that the test has written and imported."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("fresh_modules")
@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_message(name, tmp_path, request):
    case, arguments = CASES[name], CASES[name].arguments
    for path, content in case.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(tmp_path / path)
        else:
            (tmp_path / path).write_bytes(content.encode() if isinstance(content, str) else content)
    if case.search:
        search = request.getfixturevalue("finished_search")
        (search / "run.json").write_text((search / "run.json").read_text().replace('"ray"', '"inline"'))
        arguments = [ticket_of(search) if argument == "TICKET" else argument for argument in arguments]
    if case.ticket:
        (tmp_path / "ticket").write_bytes(case.ticket(request.getfixturevalue("ticket_file")))
    if case.damage:
        case.damage(tmp_path / "finished_search")
    there, before = listing(tmp_path), contents(tmp_path)
    started = time.monotonic()
    said = in_process(*arguments, cwd=tmp_path, RAY_ADDRESS="")
    assert time.monotonic() - started < MOST_SECONDS
    assert said.returncode == case.code, said.stderr + said.stdout
    assert case.message in said.stderr
    assert case.absent not in said.stderr
    assert "Traceback" not in said.stderr
    assert len((said.stderr + (said.stdout if case.code else "")).splitlines()) <= MOST_LINES
    after = contents(tmp_path)
    if case.code == 2:
        assert (listing(tmp_path), after) == (there, before)
    else:
        kept = set(after.values())
        lost = [str(path) for path, content in before.items() if content not in kept]
        assert [path for path in lost if not path.endswith((".parquet", ".jsonl"))] == []


def test_the_first_three_problems_are_listed_and_the_others_counted(tmp_path):
    (tmp_path / "bad.yaml").write_text(UNKNOWN_KEYS)
    lines = in_process("run", "bad.yaml", cwd=tmp_path).stderr.splitlines()
    assert len(lines) == 4
    assert lines[-1] == "and 3,004 more"  # including the missing keys dataset, model and so on
