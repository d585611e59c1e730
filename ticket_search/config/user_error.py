"""Describe a user's exception in one line.

The exception may have a long message, and converting it to text may itself raise an exception.
"""

import os
import sysconfig
import traceback
from pathlib import Path

#: Stack frames in these folders show only where an error surfaced. The mistake itself is in the user's own code.
_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_LIBRARIES = (_PACKAGE, *(sysconfig.get_path(n) + os.sep for n in ("stdlib", "purelib", "platlib")))
_LONGEST_LINE = 300


def headline(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message, truncated after 300 characters."""
    try:
        text = str(error)
    except Exception:  # str() runs the exception's own __str__, which may itself raise
        text = ""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    message = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return message if len(message) <= _LONGEST_LINE else message[:_LONGEST_LINE] + "..."


def one_line(error: BaseException) -> str:
    """Describe an exception from user code in one line: its type, the first line of its message, and a file and line.

    The file and line are those of the innermost stack frame outside this package, the standard library and installed
    packages. If there is no such frame because the user code is itself installed, they are those of the outermost frame
    outside this package.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_PACKAGE, "<frozen "))
    ]
    of_user = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    if not frames:
        return headline(error)
    frame = of_user[-1] if of_user else frames[0]
    return f"{headline(error)} ({frame.filename}:{frame.lineno})"
