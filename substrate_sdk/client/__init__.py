"""The client: connections, worlds, execs, files; async first, sync on top of it."""
