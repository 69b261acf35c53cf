"""Scorers of text on the host. Text is data: nothing here evaluates it, and every size is bounded."""
