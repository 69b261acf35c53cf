"""Graders of text, in processes that can be killed."""
