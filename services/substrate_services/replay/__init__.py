"""Run a recorded step again and say whether it did the same."""
