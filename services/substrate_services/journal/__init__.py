"""Append-only, chained record of everything a host did: the only truth."""
