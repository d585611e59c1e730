"""Find the names of user code in a specification, import the named functions, and compute digests of their source."""

import hashlib
import importlib
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from ticket_search.config.search import SearchSpec
from ticket_search.config.space import dotted
from ticket_search.config.trajectory import USER_FUNCTION, TrajectorySpec
from ticket_search.config.user_error import one_line
from ticket_search.errors import SpecError

#: The fields that may name user code.
_FIELDS = ("task", "dataset.name", "model.name", "training.executor")
#: Maps a module to the digest of its source at the time of the import. Editing the file later does not change the
#: digest, because the process still runs the imported code.
_DIGESTS: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()


def user_code(spec: SearchSpec | TrajectorySpec) -> list[str]:
    """Return the distinct names of the form ``package.module:function`` in a specification's fields and space."""
    names = [attrgetter(field)(spec) for field in _FIELDS]
    if isinstance(spec, SearchSpec):
        listed = [domain for field, domain in spec.space.items() if dotted(field) in _FIELDS]
        names += [name for domain in listed if isinstance(domain, tuple) for name in domain]
    # The values in the space of an existing run directory are not validated again, so a value that should be a name may
    # have any type.
    named = [name for name in names if isinstance(name, str) and USER_FUNCTION.fullmatch(name)]
    return list(dict.fromkeys(named))


def check_code_allowed(spec: SearchSpec | TrajectorySpec, source: object, *, allow_code: bool) -> None:
    """Check that a specification names no user code, or that such code is allowed, without importing anything.

    Args:
        spec: the specification in a run directory or a ticket file, which may be untrusted.
        source: the directory or file, for the message.
        allow_code: whether user code may run.

    Raises:
        SpecError: the specification names user code, and `allow_code` is False.
    """
    names = user_code(spec)
    if names and not allow_code:
        raise SpecError(
            f"{str(source)!r} names code that is not part of ticket_search: {', '.join(map(repr, names))}; loading it "
            "would run that code. If you trust it, add --allow-code (in Python: allow_code=True)"
        )


def find_user_modules() -> None:
    """Add the working directory to the import path, as `python -m` does, so that the user's modules are found.

    Raises:
        SpecError: the working directory has been deleted.
    """
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise SpecError("the working directory has been deleted; change into one that exists") from None
    if here not in sys.path:
        sys.path.append(here)


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that ``package.module:function`` names.

    Raises:
        SpecError: the module cannot be imported, or has no such function.
    """
    attribute = name.partition(":")[2]
    module = _module(name)
    try:
        function = getattr(module, attribute, None)
    except Exception as error:  # raised by the module's own `__getattr__`
        raise SpecError(f"{name!r}: the module has no function {attribute!r}: {one_line(error)}") from error
    if not callable(function):
        raise SpecError(f"{name!r}: the module has no function {attribute!r}")
    return function  # type: ignore[no-any-return]


def source_digest(name: str) -> str:
    """Return the SHA-256 digest (64 hexadecimal digits) of the source of the module in ``package.module:function``.

    The source is read when this process first imports the module. The modules that this module imports are
    not included.

    Raises:
        SpecError: the module cannot be imported, or has no source file.
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
        if not file or not Path(file).is_file():  # e.g. the code of a notebook or of a program read from stdin
            raise SpecError(f"{name!r}: the module {path!r} has no source file; put the function into a .py file")
        _DIGESTS[module] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return module
