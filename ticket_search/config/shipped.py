"""Search space files: those that ship with the package, by name, and any other by path."""

from pathlib import Path

from ticket_search.errors import SpecError

_PACKAGE = Path(__file__).parents[1]
#: A wheel holds the files inside the package (see setup.py); a checkout holds them beside it.
_SHIPPED = next(path for path in (_PACKAGE / "search_spaces", _PACKAGE.parent / "search_spaces") if path.is_dir())


def search_file(space: str) -> Path:
    """The file of a search space: a path, or the name of a search that ships, such as ``digits``.

    Raises:
        SpecError: it is neither; lists the names.
    """
    shipped = {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}
    if Path(space).is_file() or space not in shipped:
        if not Path(space).exists():
            raise SpecError(f"no search space {space!r}: neither a file, nor one that ships ({', '.join(shipped)})")
        return Path(space)
    return shipped[space]
