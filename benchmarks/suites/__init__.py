"""Other programs' own test suites, run with the preload library and without."""
