"""Bugs of what is chosen for the device: the fused loss, memory held and given back."""

from bugs.mutation import Mutation

M = "faisca_mlx/"
MEMORY = "tests/test_mlx_memory.py"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "the fused loss counts targets that are left out",
        M + "losses.py",
        "[valid_n.astype(mx.float32)],",
        "[mx.ones(len(target))],",
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
        "            hidden = mx.depends([hidden], [d_head_VD, d_hidden[-1], losses[-1]])[0]\n",
        "            hidden = hidden if fused else mx.depends([hidden], [d_head_VD, d_hidden[-1], losses[-1]])[0]\n",
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
        M + "optimizer.py",
        "if shapes not in self.shapes and len(self.shapes) >= MOST_TRACES:",
        "if shapes not in self.shapes and not len(self.shapes) % MOST_TRACES and len(self.shapes) > 2 * MOST_TRACES:",
        MEMORY + "::test_shapes_beyond_the_cap_drop_the_graphs_and_say_so_once",
    ),
    Mutation(
        "shapes are counted, graphs are not dropped",
        M + "optimizer.py",
        "            self._begin()\n            self.dropped += 1\n",
        "            self.shapes.clear()\n            self.dropped += 1\n",
        MEMORY + "::test_dropped_graphs_are_freed",
    ),
    Mutation(
        "the cache is emptied at every reading",
        M + "optimizer.py",
        "if threshold and held > threshold:",
        "if threshold:",
        MEMORY + "::test_the_cache_is_emptied_above_its_threshold_only",
    ),
)
