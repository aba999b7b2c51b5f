"""Isolated execution contexts and what happens in them."""
