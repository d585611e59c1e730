"""Each folder may import only what `ALLOWED` lists for it, and some entry points must not load any heavy library.

A new import between folders needs an entry in `ALLOWED`, and a good reason for it.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ticket_search

ROOT = Path(ticket_search.__file__).parent
#: For each part of the package, the parts that it may import.
#: "" is the package's ``__init__``, from which other parts import only the version.
ALLOWED = {
    "": {"results", "lottery", "launch"},
    "errors": set(),
    "storage": {"errors"},
    "config": {"errors"},
    "pruning": {"errors", "config"},
    "models": {"errors", "config"},
    "data": {"errors", "config"},
    "results": {"errors", "config", "storage", "tasks"},
    "store": {"errors", "config", "storage"},
    "tasks": {"errors", "config", "models", "data"},
    "training": {"errors", "config", "pruning", "models", "data", "tasks"},
    "lottery": {"errors", "config", "training", "pruning", "models", "tasks", "store", "results"},
    "search": {"errors", "config", "storage", "results", "tasks"},
    "runs": {"", "errors", "config", "storage", "results", "search"},
    "engines": {"errors", "config", "storage", "tasks", "training", "store", "lottery", "results", "search", "runs"},
    "launch": {
        *("", "errors", "config", "storage", "models", "tasks", "training", "store", "lottery", "results", "search"),
        *("runs", "engines"),
    },
    "follow_up": {
        *("errors", "config", "storage", "tasks", "store", "lottery", "results", "search", "runs", "engines"),
        "analysis",
    },
    "analysis": {"errors", "config", "results"},
    "cli": {"", "errors", "config", "storage", "results", "search", "runs", "launch", "follow_up", "analysis"},
}
#: For each library, the only folders that may import it.
ONLY_IN = {
    "ray": {"engines/ray"},
    "optuna": {"search"},
    "torch": {"pruning", "models", "data", "tasks", "training", "lottery", "store", "engines", "launch"},
    "torchvision": {"models", "data"},
    "matplotlib": {"analysis"},
    "click": {"cli"},
    "rich": {"cli"},
    "numba": {"training"},
    "llvmlite": {"training"},
}


def part_of(path):
    """Return the part of the package that a file belongs to."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(source):
    """Return the modules that Python source imports anywhere; ``from a import b`` counts as both ``a`` and ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {"." * node.level + (node.module or "")}
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "ticket_search"}
    return names


def folder_of(path):
    """Return the folder of a file, relative to the package. For a top-level module, return the module's name."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:-1]) if len(parts) > 1 else part_of(path)


def forbidden(folder, source):
    """Return a line about each forbidden import in the source of a file in `folder`."""
    found, part = [], folder.partition("/")[0]
    for name in sorted(imported(source)):
        library, _, rest = name.partition(".")
        if library == "":
            found.append(f"{part} imports {name}: write the whole name")
        elif library == "ticket_search":
            first = rest.partition(".")[0]
            target = first if first in ALLOWED else ""
            if rest and target != part and target not in ALLOWED[part]:
                found.append(f"{part} imports {name}")
        elif not {part, folder} & ONLY_IN.get(library, {part}):
            found.append(f"{part} imports {name}")
    return found


def test_no_forbidden_import():
    files = sorted(ROOT.rglob("*.py"))
    assert [line for path in files for line in forbidden(folder_of(path), path.read_text())] == []


def test_imports_between_folders_have_no_cycle():
    """Without cycles, each folder can be understood without the folders that use it."""
    order, left = [], {part: set(targets) for part, targets in ALLOWED.items() if part}
    while ready := sorted(part for part, targets in left.items() if targets - {""} <= set(order)):
        order += ready
        for part in ready:
            del left[part]
    assert left == {}


def test_every_part_is_known():
    assert sorted({part_of(path) for path in ROOT.rglob("*.py")} - ALLOWED.keys()) == []


@pytest.mark.parametrize(
    ("part", "source", "found"),
    [
        ("config", "import torch", ["config imports torch"]),
        ("training", "def f():\n    import ray.tune", ["training imports ray.tune"]),
        ("pruning", "from ticket_search.models import build", ["pruning imports ticket_search.models"]),
        ("pruning", "from ticket_search import models", ["pruning imports ticket_search.models"]),
        ("models", "import ticket_search.training.loop as t", ["models imports ticket_search.training.loop"]),
        (
            "analysis",
            "if TYPE_CHECKING:\n    from ticket_search.launch.run import x",
            ["analysis imports ticket_search.launch.run"],
        ),
        ("store", "from ..lottery import level", ["store imports ..lottery: write the whole name"]),
        ("config", "from ticket_search import __version__", ["config imports ticket_search.__version__"]),
        ("errors", "from ticket_search.config.base import Spec", ["errors imports ticket_search.config.base"]),
        ("engines", "import ray", ["engines imports ray"]),
        ("engines/ray", "import ray, torch\nfrom ticket_search.lottery.rows import level_row", []),
        ("cli", "from ticket_search import __version__\nfrom ticket_search.launch.run import run_search", []),
        ("config", "from ticket_search.config.base import Spec\nimport json", []),
    ],
)
def test_forbidden_imports_are_found(part, source, found):
    assert forbidden(part, source) == found


HEAVY = ("torch", "ray", "optuna", "pandas", "pyarrow", "tensorboard", "torchvision", "matplotlib")


def loaded(statement, *arguments):
    """Run a statement in a new process and return the heavy libraries that it has loaded."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('LOADED', *(name for name in {HEAVY} if name in sys.modules)))\n{statement}"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()[-1].split()[1:]


CLI = "import runpy; runpy.run_module('ticket_search.cli', run_name='__main__')"


@pytest.mark.parametrize(
    ("statement", "arguments"),
    [
        ("import ticket_search; assert {*ticket_search.__all__} <= {*dir(ticket_search)}", ()),
        ("import ticket_search.config.search, ticket_search.config.identity, ticket_search.storage.lease", ()),
        (CLI, ("--help",)),
        (CLI, ("run", "--help")),
        (CLI, ("--version",)),
    ],
    ids=["package", "config", "help", "run_help", "version"],
)
def test_instant_commands_load_nothing_heavy(statement, arguments):
    assert loaded(statement, *arguments) == []


def test_heavy_libraries_are_found():
    assert loaded("from ticket_search import load_results") == ["pandas", "pyarrow"]
