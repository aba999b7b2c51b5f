"""The services a Substrate host runs (DESIGN §2)."""
