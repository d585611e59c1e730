"""In the documentation, all commands parse, all links resolve and all examples compile."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from ticket_search.cli.commands import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")
#: Placeholders for numbers in examples.
NUMBERS = {"N", "K"}


def blocks(page, *languages):
    return [text for _, language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(page):
    """Yield each ``ticket-search ...`` command on a page, and whether all its arguments are given."""
    for block in blocks(page, "", "bash", "sh", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.lstrip("$ ").startswith("ticket-search "):
                yield line.lstrip("$ "), "[" not in line.partition(" #")[0].replace("=[", "")
    for text in re.findall(r"(?<!`)`(ticket-search [^`]+)`(?!`)", BLOCK.sub("", page.read_text())):
        yield " ".join(text.split()), False


def words(line):
    if not re.search(r"'.*\[", line):
        line = line.translate(str.maketrans("[]", "  "))
    given = [word for word in shlex.split(line, comments=True)[1:] if word != "..."]
    # Remove s3://, because parsing the argument would otherwise look the bucket up on the network.
    return ["1" if word in NUMBERS else word.replace("s3://", "") for word in given]


def anchors(page):
    """Return the anchors that GitHub generates for a page's headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.M)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist_with_their_options(page):
    for line, is_complete in commands(page):
        name, *arguments = words(line)
        if name.startswith("-"):
            continue
        assert name in main.commands, line
        command = main.commands[name]
        try:
            if is_complete:
                command.make_context(name, arguments)
            else:
                command.make_parser(click.Context(command)).parse_args(arguments)
        except click.UsageError as error:
            pytest.fail(f"{page.name}: {line}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in filter(None, sum(LINK.findall(BLOCK.sub("", page.read_text())), ())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_compile(page):
    for text in blocks(page, "python"):
        ast.parse(text)
    for text in blocks(page, "yaml"):
        yaml.safe_load(text)


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md", "search_spaces.md"}
    assert {name for name in names if f"]({name})" not in index} == set()


def test_the_tutorials_search_is_valid(tmp_path):
    from ticket_search.config.loading import load_search

    (tmp_path / "first.yaml").write_text(blocks(ROOT / "docs" / "tutorial.md", "yaml")[0])
    assert load_search(tmp_path / "first.yaml").planned_trials == 6


def test_figures_are_small_and_readable_on_any_background():
    figures = sorted((ROOT / "docs" / "figures").glob("*.svg"))
    assert figures
    for figure in figures:
        text = figure.read_text()
        assert len(text) < 200_000
        background = "#0d1117" if figure.stem.endswith("_dark") else "#ffffff"
        assert f"fill: {background}" in text[: text.index("axes_1")]
        assert "<text" in text


def test_dark_figures_show_the_same_data_as_the_light_ones():
    dark_figures = list((ROOT / "docs" / "figures").glob("*_dark.svg"))
    assert dark_figures
    for dark in dark_figures:
        light = dark.with_name(dark.name.replace("_dark", ""))
        # IDs are hashes that include colors, so only texts and the coordinates of paths can be compared.
        shown = re.compile(r">([^<>\n]+)</text>|<path d=\"([^\"]+)\"")
        assert shown.findall(dark.read_text()) == shown.findall(light.read_text())


def test_the_readmes_figure_has_a_dark_variant():
    light, dark = "docs/figures/mnist_lenet.svg", "docs/figures/mnist_lenet_dark.svg"
    readme = (ROOT / "README.md").read_text()
    assert f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">' in readme
    assert f'<img src="{light}"' in readme
