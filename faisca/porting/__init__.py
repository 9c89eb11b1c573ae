"""Weights from one format to another, compared before anything is left behind: `docs/porting.md`.

`formats` says what a model is on its way, `weight_files`, `run_folders` and `huggingface` read and
write it, `verify` asks the libraries of both sides the same questions, `command` is `faisca port`.
"""
