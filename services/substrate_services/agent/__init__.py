"""What agents talk to: sessions, worlds by proxy, run."""
