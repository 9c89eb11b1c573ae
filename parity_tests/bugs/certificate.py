"""Bugs of the certificate itself: it passes what it should not, or does not do what it says."""

from bugs.mutation import Mutation

TESTS = "parity_tests/test_16_certificate.py"
COMPARE, PREFLIGHT = "faisca/certificate/compare.py", "faisca/training/preflight.py"
BUGS = (
    Mutation(
        "the certificate's tolerance ignored",
        COMPARE,
        "return not self.zero and self.distance <= self.allowed(dtype)",
        "return not self.zero",
        "tests/test_certificate.py",
    ),
    Mutation(
        "a gradient of zero excused",
        COMPARE,
        "return not self.zero and self.distance <= self.allowed(dtype)",
        "return self.distance <= self.allowed(dtype)",
        "tests/test_certificate.py",
    ),
    Mutation(
        "an alternative found and not trained with",
        PREFLIGHT,
        "    return run.setup.make_model(parameters)\n",
        "    return model\n",
        f"{TESTS}::test_a_run_trains_in_the_way_that_passes_and_says_so",
    ),
    Mutation(
        "a device that is wrong, and trained on all the same",
        PREFLIGHT,
        "    if not verdict.certificate.passed:\n        raise",
        "    if False:\n        raise",
        f"{TESTS}::test_a_device_that_is_always_wrong_is_refused_and_nothing_is_lost",
    ),
)
