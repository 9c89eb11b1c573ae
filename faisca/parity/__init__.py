"""Proof that the twins compute the same thing: `docs/parity.md`.

`rungs` has what is compared, from initial values to a GRPO step, `sampling` the drawn tokens, and
`differences` the one report of how far apart two results are; `command` is `faisca parity`. The
whole ladder, with its tolerances, is `parity_tests/`.
"""
