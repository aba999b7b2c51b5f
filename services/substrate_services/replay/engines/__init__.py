"""Where the runs of a replay happen."""
