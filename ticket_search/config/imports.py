"""What is a user's own: the function named by ``package.module:function``, and a digest of its source."""

import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from ticket_search.config.user_error import one_line
from ticket_search.errors import SpecError

#: The code that runs is the code that was imported: an edit of the file afterwards changes neither.
_DIGESTS: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()


def load_function(name: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    Raises:
        SpecError: the module cannot be imported, or holds no such function.
    """
    attribute = name.partition(":")[2]
    function = getattr(_module(name), attribute, None)
    if not callable(function):
        raise SpecError(f"{name!r}: the module has no function {attribute!r}")
    return function  # type: ignore[no-any-return]


def source_digest(name: str) -> str:
    """SHA-256, in 64 hexadecimal digits, of the source of the module in ``package.module:function``.

    The source is that of the first use in this process. What the module imports in turn is not part of it.

    Raises:
        SpecError: the module cannot be imported, or has no file.
    """
    return _DIGESTS[_module(name)]


def _module(name: str) -> ModuleType:
    path = name.partition(":")[0]
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}.")
        hint = f"; its folder must be on the import path, which is {sys.path}" if absent else ""
        raise SpecError(f"{name!r}: importing {path!r} failed: {one_line(error)}{hint}") from error
    if module not in _DIGESTS:
        file = getattr(module, "__file__", None)
        if not file:
            raise SpecError(f"{name!r}: the module {path!r} has no source file; put the function into a .py file")
        _DIGESTS[module] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return module
