"""From segments to processes, events and coverage; OpenTelemetry as a projection."""
