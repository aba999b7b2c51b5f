"""Content-addressed store of bytes and trees."""
