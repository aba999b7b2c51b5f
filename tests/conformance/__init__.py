"""What every backend must do, held against each of them in each of its modes.

A clause is a sentence of the contract. Its test uses the SDK and the RPCs alone, so that it holds
for a backend that is not written yet; :mod:`tests.conformance.modes` lists those that are. Where a
mode says, in its capabilities, that something is missing, the clause is skipped for it with those
words. `make conformance` prints clause by mode.
"""
