"""Damage and odd input at random: `python -m tests.fuzz --n 10000 --seed 0`.

A kind of case is a function that gets a folder of its own, makes there what its cases need, and returns the function
that tries one of them; `@kind("name")` adds it. A case draws all that it does from the `random.Random` that it gets, so
that `--only name:number` with the same seed repeats it, and says what came of it as an `Outcome`.
"""
