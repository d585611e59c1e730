"""Find search space files, by name if they ship with the package and otherwise by path."""

from pathlib import Path

from ticket_search.errors import SpecError, quoted

_PACKAGE = Path(__file__).parents[1]
#: In a wheel, the files are inside the package (see setup.py); in a checkout, they are next to it.
_SHIPPED = next(path for path in (_PACKAGE / "search_spaces", _PACKAGE.parent / "search_spaces") if path.is_dir())


def search_file(space: str) -> Path:
    """Return the file of a search space, given its path or, if it ships with the package, its name, e.g. ``digits``.

    Raises:
        SpecError: `space` is neither a readable path nor a known name; the message lists the names.
    """
    shipped = {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}
    if not space.strip():
        raise SpecError(f"no search space {space!r}; give a file or a name ({', '.join(shipped)})")
    path = Path(space)
    try:
        is_file, exists = path.is_file(), path.exists()
    except OSError as error:  # e.g. a name of more than 255 bytes, or a loop of symbolic links
        raise SpecError(f"cannot read the search space {quoted(space)}: {error.strerror}") from None
    if is_file or space not in shipped:
        if not exists:
            names = ", ".join(shipped)
            raise SpecError(
                f"no search space {quoted(space)}: neither a file nor a search that ships with ticket_search ({names})"
            )
        return path
    return shipped[space]
