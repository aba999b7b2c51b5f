"""Process assembly: configuration, start-up, doctor."""
