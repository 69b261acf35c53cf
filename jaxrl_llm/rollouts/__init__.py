"""Rollouts: sampling rules and the decode loop. Import the modules: the loop needs flax, the rules do not."""
