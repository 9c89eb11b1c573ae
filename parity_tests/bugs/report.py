"""A page that runs what a headline says, and one that shows another number than the run's."""

from bugs.mutation import Mutation

PAGE = "faisca/report/page.py"
TESTS = "tests/test_report.py::test_"
BUGS = (
    Mutation(
        "a headline's tags are a report's tags",
        PAGE,
        "autoescape=True",
        "autoescape=False",
        f"{TESTS}texts_of_a_run_do_nothing_in_its_page",
    ),
    Mutation(
        "a reward's name ends the script that has the data",
        PAGE,
        '.replace("<", "\\\\u003c")',
        "",
        f"{TESTS}texts_of_a_run_do_nothing_in_its_page",
    ),
    Mutation(
        "every script may run in a report",
        PAGE,
        "script-src {allowed}",
        "script-src 'unsafe-inline'",
        f"{TESTS}a_page_asks_the_network_for_nothing",
    ),
    Mutation(
        "a token has the probability of the one before it",
        "faisca/report/tokens.py",
        "float(log_probs[place - 1])",
        "float(log_probs[place - 2])",
        f"{TESTS}tokens_have_the_models_own_probabilities",
    ),
    Mutation(
        "a report marks what is as in the preset",
        "faisca/report/tables.py",
        "[value != preset for value",
        "[value == preset for value",
        f"{TESTS}options_are_compared_with_the_preset",
    ),
    Mutation(
        "a spike goes where a curve has many points",
        "faisca/report/curves.py",
        "int(stretch[y[stretch].argmax()])",
        "int(stretch[y[stretch].argmin()])",
        f"{TESTS}thinned_curves_keep_their_extremes",
    ),
)
