"""The experiments stand outside the package, beside it."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
