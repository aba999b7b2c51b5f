"""The slow-down of real work under full telemetry, next to other recorders."""
