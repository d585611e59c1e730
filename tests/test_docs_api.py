"""The names and signatures in ``docs/api.md`` match the code."""

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

import ticket_search
from ticket_search import errors

TEXT = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
ENTRIES = dict(re.findall(r"^### `(ticket_search[\w.]*)`\n+```python\n(.*?)```", TEXT, re.M | re.S))


class _Plain(ast.NodeTransformer):
    """A transformer that removes docstrings, bodies, irrelevant decorators and quotes around annotations."""

    def visit_FunctionDef(self, node):
        node.body = [ast.Expr(ast.Constant(...))]
        node.returns = _unquoted(node.returns)
        for argument in (*node.args.args, *node.args.kwonlyargs):
            argument.annotation = _unquoted(argument.annotation)
        node.decorator_list = [name for name in node.decorator_list if ast.unparse(name) in ("property", "classmethod")]
        return node

    def visit_ClassDef(self, node):
        node.decorator_list = []
        node.body = [self.visit(part) for part in node.body if _is_public(part)] or [ast.Expr(ast.Constant(...))]
        return node


def _unquoted(annotation):
    is_quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return ast.parse(annotation.value, mode="eval").body if is_quoted else annotation


def _is_public(part):
    if isinstance(part, ast.FunctionDef):
        return not part.name.startswith("_")
    return isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_")


def signature(source):
    """Return the part of a function's or class's source that the page shows."""
    return ast.unparse(ast.fix_missing_locations(_Plain().visit(ast.parse(textwrap.dedent(source)))))


def named(dotted):
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("dotted", ENTRIES)
def test_a_signature_is_that_of_the_code(dotted):
    assert signature(ENTRIES[dotted]) == signature(inspect.getsource(named(dotted)))


def test_no_public_name_is_missing():
    public = {f"ticket_search.{name}" for name in ticket_search.__all__ if name != "__version__"}
    raised = {
        f"ticket_search.errors.{name}"
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert public <= set(ENTRIES)
    assert {name for name in raised if f"`{name.rpartition('.')[2]}`" not in TEXT} == set()
