"""What all commands do alike: a mistake of the user's is one line on stderr and exit code 1, never a traceback."""

import sys
from collections.abc import Callable


def guarded(run: Callable[[], object]) -> int:
    """Call `run`; the exit code. Errors of other kinds than these are ours, and keep their traceback."""
    try:
        run()
    except (OSError, ValueError) as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 1
    return 0


def told(error: Exception) -> str:
    """What an error says, without the traceback that torch wraps around one from a worker process."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    lines = text.rstrip().splitlines()
    last = max(i for i, line in enumerate(lines) if line and not line.startswith(" "))
    return "\n".join([lines[last].partition(": ")[2] or lines[last], *lines[last + 1 :]])
