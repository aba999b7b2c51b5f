"""The truth test: what the recorder captured, next to what strace saw of the same processes."""
