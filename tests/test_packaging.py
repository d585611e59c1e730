"""The wheel contains all required files and no others, and the project's metadata are consistent."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import ticket_search
from ticket_search.config.loading import load_search

ROOT = Path(__file__).parents[1]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_shipped_search_is_valid_and_named_like_its_file(path):
    assert load_search(path).name == path.stem


def test_the_wheel_carries_the_searches_the_digits_and_the_licenses(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"ticket_search/search_spaces/{path.name}" for path in SPACES} <= set(names)
    assert {"ticket_search/data/digits.npz", "ticket_search/data/digits.LICENSE.txt", "ticket_search/py.typed"} <= set(
        names
    )
    assert {"LICENSE", "digits.LICENSE.txt"} <= {Path(name).name for name in names if "dist-info" in name}
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "search_spaces"))]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ticket_search.__version__
    assert re.search(rf"^## {re.escape(ticket_search.__version__)} ", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_the_metadata_list_the_pythons_of_ci():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tested = workflow["jobs"]["check"]["strategy"]["matrix"]["python"]
    listed = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", name) for name in project["classifiers"]]
    assert [match[1] for match in listed if match] == tested
    assert project["requires-python"] == f">={tested[0]}"


def test_no_file_is_a_symbolic_link():
    """Windows checkouts and many archive formats turn a symbolic link into a text file."""
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line for line in listed.stdout.splitlines() if line.startswith("120000")] == []
