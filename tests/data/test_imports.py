import subprocess
import sys

import pytest

from ticket_search.config.imports import load_function, source_digest
from ticket_search.config.user_error import headline, one_line
from ticket_search.engines.worker import end_of
from ticket_search.errors import SpecError


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name and the file of a user's module that this process has not imported yet."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("def f():\n    return 1\n\nnot_callable = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name, tmp_path / f"{name}.py"
    sys.modules.pop(name, None)


def test_an_edit_after_the_import_changes_neither_digest_nor_code(module):
    name, file = module
    before = source_digest(f"{name}:f")
    file.write_text("def f():\n    return 2\n")
    assert source_digest(f"{name}:f") == before
    assert load_function(f"{name}:f")() == 1


def test_a_fresh_process_sees_the_edit(module):
    name, file = module
    before = source_digest(f"{name}:f")
    script = f"import sys; sys.path.insert(0, {str(file.parent)!r})\n"
    script += f"from ticket_search.config.imports import source_digest; print(source_digest('{name}:f'))"

    def fresh():
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()

    assert fresh() == before
    file.write_text("def f():\n    return 22\n")
    assert fresh() != before


@pytest.mark.parametrize("name", ["no_such_package.module:f", "ticket_search.no_such_module:f"])
def test_an_absent_module_is_named_with_the_import_path(name):
    with pytest.raises(SpecError, match=r"its folder must be on the import path") as error:
        load_function(name)
    assert name in str(error.value)


def test_an_error_inside_the_module_is_not_blamed_on_the_path(module):
    name, file = module
    file.write_text("import no_such_dependency\n")
    with pytest.raises(SpecError, match="no_such_dependency") as error:
        load_function(f"{name}:f")
    assert "import path" not in str(error.value)


@pytest.mark.parametrize("attribute", ["absent", "not_callable"])
def test_the_module_must_define_the_function(module, attribute):
    with pytest.raises(SpecError, match=f"no function '{attribute}'"):
        load_function(f"{module[0]}:{attribute}")


def test_a_module_without_a_file_has_no_digest():
    with pytest.raises(SpecError, match="'sys' has no source file"):
        source_digest("sys:getrefcount")


class TestOneLine:
    """Tests for the one-line description of an exception that a user's code has raised."""

    def of(self, module, body):
        name, file = module
        file.write_text(f"import json\n\ndef f():\n    {body}\n")
        with pytest.raises(Exception) as error:  # noqa: PT011 (the body may raise any exception)
            load_function(f"{name}:f")()
        return one_line(error.value).replace(str(file), "FILE")

    def test_first_nonempty_line_of_several(self, module):
        assert self.of(module, r"raise ValueError('\n  too deep\nby far')") == "ValueError: too deep (FILE:4)"

    def test_without_a_message(self, module):
        assert self.of(module, "assert False") == "AssertionError (FILE:4)"

    def test_raised_in_a_library_that_the_users_code_calls(self, module):
        line = self.of(module, "json.loads('{')")
        assert line.startswith("JSONDecodeError: Expecting property name")
        assert line.endswith("(FILE:4)")

    def test_long_messages_are_cut(self, module):
        assert len(self.of(module, "raise ValueError('x' * 10_000)")) < 400

    def test_raised_at_import(self, module):
        name, file = module
        file.write_text("raise OSError('no\\ndisk')\n")
        with pytest.raises(SpecError) as error:
            load_function(f"{name}:f")
        assert str(error.value) == f"'{name}:f': importing '{name}' failed: OSError: no ({file}:1)"


def test_a_headline_is_one_line_even_if_the_text_of_the_exception_raises():
    odd = type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})
    errors = (ValueError("\n too deep \nbecause"), KeyError(), odd(), ValueError("x" * 1000))
    assert [headline(error) for error in errors] == [
        *("ValueError: too deep", "KeyError", "Odd"),
        f"ValueError: {'x' * 288}...",
    ]
    assert end_of(odd()).reason == "Odd"
