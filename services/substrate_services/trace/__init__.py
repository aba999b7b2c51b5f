"""TraceService: the read side of what a host recorded."""
