"""Speed and memory of both backends, and of baselines, on the same work: `docs/benchmarks.md`.

`command` is `faisca bench`, its table and files. `work` says what is measured, and `measure` does it in
rounds; `worker` is the process that each backend or baseline has, `twin` times a backend's cases
in it; `preparation` times the data; `machine` says where; `results` summarises, and `chart` draws.
"""
