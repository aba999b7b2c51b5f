"""Ways to put an init into a box."""
