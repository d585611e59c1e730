"""Finds search space files: those that ship with the package by name, any other by path."""

from pathlib import Path

from ticket_search.errors import SpecError, quoted

_PACKAGE = Path(__file__).parents[1]
#: A wheel holds the files inside the package (see setup.py); a checkout holds them beside it.
_SHIPPED = next(path for path in (_PACKAGE / "search_spaces", _PACKAGE.parent / "search_spaces") if path.is_dir())


def search_file(space: str) -> Path:
    """The file of a search space, given as a path or as the name of a search that ships, such as ``digits``.

    Raises:
        SpecError: it is neither; the message lists the names.
    """
    shipped = {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}
    if not space.strip():
        raise SpecError(f"no search space {space!r}; give a file or a name ({', '.join(shipped)})")
    path = Path(space)
    try:
        is_file, exists = path.is_file(), path.exists()
    except OSError as error:  # a name of more than 255 bytes, a loop of symbolic links
        raise SpecError(f"cannot read the search space {quoted(space)}: {error.strerror}") from None
    if is_file or space not in shipped:
        if not exists:
            raise SpecError(f"no search space {quoted(space)}: neither a file nor a name ({', '.join(shipped)})")
        return path
    return shipped[space]
