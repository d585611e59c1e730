"""Describes an exception from user code in one line."""

import os
import sysconfig
import traceback
from pathlib import Path

#: Stack frames in these folders show where an error surfaced; the user's own frames show the mistake.
_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_LIBRARIES = (_PACKAGE, *(sysconfig.get_path(n) + os.sep for n in ("stdlib", "purelib", "platlib")))
_LONGEST_LINE = 300


def type_and_text(error: BaseException) -> str:
    """Return an exception's type and the first line of its message, cut to a length that fits in a table."""
    try:
        text = str(error)
    except Exception:  # the exception is the user's too
        text = ""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    message = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return message if len(message) <= _LONGEST_LINE else message[:_LONGEST_LINE] + "..."


def one_line(error: BaseException) -> str:
    """Describe an exception from user code in one line: its type, the first line of its message, and file and line.

    File and line are those of the innermost stack frame outside this package, the standard library and installed
    packages. If there is no such frame because the user code is itself installed, they are those of the outermost frame
    outside this package.
    """
    message = type_and_text(error)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_PACKAGE, "<frozen "))
    ]
    of_user = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    if not frames:
        return message
    frame = of_user[-1] if of_user else frames[0]
    return f"{message} ({frame.filename}:{frame.lineno})"
