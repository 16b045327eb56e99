"""Writing files so that nothing is lost: a file is replaced as a whole or stays as it was, and errors say what to do."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Whatever the system objects to inside becomes an OSError that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be written: {error}. What was there before is untouched. Free some space, or choose a place "
            "that you may write to."
        ) from error


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Call write(temporary path) beside `path`, flush it to disk, then rename it over `path`."""
    with writing(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The same for a text."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
