"""Proof that the twins compute the same thing: `docs/parity.md`.

`cases` has the sides and models, `rungs` what is compared on them, `sampling` the drawn tokens, and
`differences` the one report of how far apart two results are; `command` is `faisca parity`. The
whole ladder, with its tolerances, is `parity_tests/`.
"""
