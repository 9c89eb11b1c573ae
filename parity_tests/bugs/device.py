"""Bugs of what is chosen for the device: the fused loss, memory held and given back, the meters of energy."""

from bugs.mutation import Mutation

M = "faisca_mlx/"
MEMORY = "tests/test_mlx_memory.py"
SUSTAINED = "tests/test_sustained.py"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "the fused loss counts targets that are left out",
        M + "losses.py",
        "upstream_n = valid_n.astype(mx.float32)",
        "upstream_n = mx.ones(len(target))",
        "parity_tests/test_03_losses.py::test_cross_entropy_and_its_gradients",
    ),
    Mutation(
        "fused losses added up in bfloat16",
        M + "losses.py",
        "return mx.where(valid_n, losses_n, 0.0)[:, None], d_hidden_nD, d_head_VD",
        "return mx.where(valid_n, losses_n, 0.0)[:, None].astype(mx.bfloat16), d_hidden_nD, d_head_VD",
        "parity_tests/test_03_losses.py::test_cross_entropy_and_its_gradients",
    ),
    Mutation(
        "the fused loss's head gradient added up in bfloat16",
        M + "losses.py",
        "    d_head_VD = d_head_VD + (errors_nV.T @ hidden_nD).astype(mx.float32)\n",
        "    d_head_VD = (d_head_VD + errors_nV.T @ hidden_nD).astype(errors_nV.dtype)\n",
        "parity_tests/test_10_bfloat16.py::test_cross_entropy_of_thousands_of_tokens",
    ),
    Mutation(
        "the fused loss forgets that chunks wait",
        M + "losses.py",
        "            hidden = mx.depends([hidden], [d_hidden[-1], losses[-1], *_given(d_head_VD)])[0]\n",
        "            waited = mx.depends([hidden], [d_hidden[-1], losses[-1], *_given(d_head_VD)])[0]\n"
        "            hidden = hidden if fused else waited\n",
        MEMORY + "::test_one_chunk_of_logits_is_alive_at_a_time",
    ),
    Mutation(
        "the wired limit stays where training fails",
        M + "device.py",
        "    try:\n        yield\n    finally:\n        mx.synchronize()  # what still computes would lose its memory\n"
        "        mx.set_wired_limit(before)\n",
        "    yield\n    mx.synchronize()\n    mx.set_wired_limit(before)\n",
        MEMORY + "::test_the_wired_limit_is_set_while_training_and_restored",
    ),
    Mutation(
        "graphs are kept beyond their cap",
        M + "device.py",
        "if shapes not in self.shapes and len(self.shapes) >= MOST_TRACES:",
        "if shapes not in self.shapes and not len(self.shapes) % MOST_TRACES and len(self.shapes) > 2 * MOST_TRACES:",
        MEMORY + "::test_shapes_beyond_the_cap_drop_the_graphs_and_say_so_once",
    ),
    Mutation(
        "shapes are counted, graphs are not dropped",
        M + "device.py",
        "            self._begin()\n            if self.notes",
        "            self.shapes.clear()\n            if self.notes",
        MEMORY + "::test_dropped_graphs_are_freed",
    ),
    Mutation(
        "the cache is emptied at every reading",
        M + "device.py",
        "if threshold and held > threshold:",
        "if threshold:",
        MEMORY + "::test_the_cache_is_emptied_above_its_threshold_only",
    ),
    Mutation(
        "a RAPL counter that wraps counts backwards",
        "faisca/bench/energy.py",
        "self._total += value - last + (most if value < last else 0)",
        "self._total += value - last",
        SUSTAINED + "::test_a_rapl_counter_that_wraps_goes_on",
    ),
    Mutation(
        "RAPL's parts count once more",
        "faisca/bench/energy.py",
        'if name.startswith("package")]',
        "if name]",
        SUSTAINED + "::test_rapl_adds_the_packages_and_neither_their_parts_nor_psys",
    ),
    Mutation(
        "millijoules taken for joules",
        "faisca/bench/energy.py",
        "return float(now - self._first) / 1000",
        "return float(now - self._first)",
        SUSTAINED + "::test_nvml_counts_millijoules_of_the_gpu_that_cuda_uses",
    ),
    Mutation(
        "the end of a sustained run compared with all of it",
        "faisca/bench/sustained.py",
        "[rate for at, rate in points if at <= span] or [points[0][1]]",
        "[rate for at, rate in points]",
        SUSTAINED + "::test_both_ends_are_compared_by_their_medians",
    ),
)
