"""Whether the header of a GGUF file stays within the file. The reader trusts its counts and would loop for hours."""

import math
import mmap
import pathlib
import struct

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a scalar, by its type
DIMENSIONS = 4
DENSEST = 16  # weights in a byte, at most


class _Walk:
    """A place in the file that only moves forward and never past its end."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def skip(self, count: int, what: str) -> int:
        """Move `count` bytes on; the place before."""
        before = self.at
        if count > len(self.data) - before:
            raise ValueError(f"{what} at byte {before} reaches past the end of the file")
        self.at += count
        return before

    def number(self, form: str, what: str) -> int:
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form), what))[0]

    def text(self, what: str) -> str:
        length = self.number("<Q", what)
        start = self.skip(length, what)
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int, what: str, depth: int = 0) -> None:
        if kind in SIZES:
            self.skip(SIZES[kind], what)
        elif kind == STRING:
            self.text(what)
        elif kind == ARRAY and depth == 0:
            inner, count = self.number("<I", what), self.number("<Q", what)
            if inner in SIZES:
                self.skip(SIZES[inner] * count, what)
            elif inner != STRING or 8 * count > len(self.data) - self.at:
                raise ValueError(f"{what} is an array of {count} values of type {inner}, which the file cannot hold")
            else:
                for _ in range(count):
                    self.text(what)
        else:
            raise ValueError(f"{what} has the unknown type {kind}")


def check_header(path: pathlib.Path) -> None:
    """Raises ValueError, which says what is wrong at which byte. Little-endian files only."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ValueError("the file is empty") from error
        with data:
            _check(_Walk(data))


def _check(walk: _Walk) -> None:
    if walk.data[:4] != MAGIC:
        raise ValueError(f"it begins with {walk.data[:4]!r}, not {MAGIC!r}")
    walk.skip(4, "the mark")
    version = walk.number("<I", "the version")
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}, not one of {', '.join(map(str, VERSIONS))}")
    tensors, fields = walk.number("<Q", "the number of tensors"), walk.number("<Q", "the number of fields")
    for _ in range(fields):  # each takes bytes, so this ends with the file
        name = walk.text("the name of a field")
        walk.value(walk.number("<I", name), f"field {name[:80]!r}")
    for _ in range(tensors):
        name = walk.text("the name of a tensor")[:80]
        rank = walk.number("<I", name)
        if rank > DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {rank} axes")
        sizes = [walk.number("<Q", name) for _ in range(rank)]
        if math.prod(sizes) > DENSEST * len(walk.data):
            raise ValueError(f"tensor {name!r} of shape {sizes} is larger than the file")
        walk.number("<I", name)
        if walk.number("<Q", name) > len(walk.data):
            raise ValueError(f"tensor {name!r} begins behind the end of the file")
