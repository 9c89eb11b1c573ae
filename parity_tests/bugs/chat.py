"""Bugs of conversations: where an answer is, what its loss is divided by, and where it stops."""

from bugs.mutation import Mutation

ENDS = "tests/test_generation.py::test_rows_stop_at_whichever_end_comes_first"
EDGES = "parity_tests/test_14_limits.py::test_a_micro_batch_of_targets_that_are_left_out"
FILE, TESTS = "faisca/data/conversations.py", "tests/test_conversations.py::"
LEARNT = f"{TESTS}test_answers_and_what_closes_them_are_learnt"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "an answer that ended said to be cut",
        "faisca/loaded_model.py",
        '"" if answer[-1] in self.tokenizer.ends else limit',
        "limit",
        "tests/test_chat.py::test_an_answer_that_is_cut_short_says_so_and_how_to_get_more",
    ),
    Mutation(
        "only the first end stops (torch)",
        "faisca_torch/generate.py",
        "np.isin(chosen, end_of_text)",
        "(chosen == end_of_text[0])",
        ENDS,
    ),
    Mutation(
        "only the last end stops (mlx)",
        "faisca_mlx/generate.py",
        "np.isin(chosen, end_of_text)",
        "(chosen == end_of_text[-1])",
        ENDS,
    ),
    Mutation(
        "padding counted in the mean",
        "faisca_mlx/train.py",
        "counted = max(1, learner.model.runtime.processes.mean(int((targets >= 0).sum())))",
        "counted = targets.size",
        EDGES,
    ),
    Mutation(
        "an answer's first token not learnt",
        FILE,
        "counted[len(before) : closes[-1] + 1] = True",
        "counted[len(before) + 1 : closes[-1] + 1] = True",
        LEARNT,
    ),
    Mutation(
        "the end of an answer not learnt",
        FILE,
        "counted[len(before) : closes[-1] + 1] = True",
        "counted[len(before) : closes[-1]] = True",
        LEARNT,
    ),
    Mutation(
        "targets of a conversation not shifted",
        FILE,
        "strict=True)][1 : end + 1]",
        "strict=True)][:end]",
        LEARNT,
    ),
    Mutation(
        "padding of a conversation learnt",
        FILE,
        "_padded(targets, window, -1)",
        "_padded(targets, window, 0)",
        f"{TESTS}test_rows_are_padded_on_the_right_where_nothing_is_learnt",
    ),
    Mutation(
        "answers in a prompt learnt too",
        FILE,
        "range(row.first, len(row.messages))",
        "range(0, len(row.messages))",
        LEARNT,
    ),
)
