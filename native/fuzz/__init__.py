"""Fuzzing the decoder; see ``run``."""
