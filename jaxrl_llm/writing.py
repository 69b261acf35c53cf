"""Files that cannot be written: one error, which names the file."""

import contextlib
import os
from collections.abc import Iterator


class WriteError(OSError):
    """A file of a run that the disk does not take: it is full, broken or read-only. Not the fault of the request."""

    status = 1  # exit status


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong inside with the disk is WriteError, and names the file; the system does so at `open` alone."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error
