"""All that leans on Lightning's inside: names with an underscore, states and orders that it does not promise.

Each function names the version that it was seen in, and has a test that runs the real Lightning, in
tests/training/lightning_internals. `test_package.py` there holds that nothing of the kind stands elsewhere.
"""
