"""Policies: the flax decoder and what is read off it. Import the modules: flax is heavy, not every user needs it."""
