"""JSON files that hold an object."""

import json
import pathlib
from typing import Any


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object. Raises OSError, and ValueError that names the file for anything that is no object."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(fields).__name__}")
    return fields
