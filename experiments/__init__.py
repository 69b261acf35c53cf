"""Questions about the methods of the library, and the machinery that answers them: `python experiments/NAME.py`."""
