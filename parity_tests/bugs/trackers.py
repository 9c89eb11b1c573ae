"""Bugs of what a run tells elsewhere, and of runs that are watched."""

from bugs.mutation import Mutation

FOLLOWING = "faisca/trackers/following.py"
TRACKERS = "tests/test_trackers.py::"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "a tracker that has failed is asked again",
        FOLLOWING,
        "            self._failed = True",
        "            self._failed = False",
        TRACKERS + "test_a_tracker_that_fails_is_said_once_and_never_called_again",
    ),
    Mutation(
        "a resumed run begins another record",
        FOLLOWING,
        'id = known["id"] if known["tracker"] == self._name else ""',
        'id = ""',
        TRACKERS + "test_another_tracker_begins_a_record_of_its_own",
    ),
    Mutation(
        "a resumed run goes on with another tracker's record",
        FOLLOWING,
        'id = known["id"] if known["tracker"] == self._name else ""',
        'id = known["id"]',
        TRACKERS + "test_another_tracker_begins_a_record_of_its_own",
    ),
    Mutation(
        "GRPO's groups, the worst completion first",
        "faisca/commands/groups.py",
        'key=lambda row: -(row["advantage"] or 0.0)',
        'key=lambda row: row["advantage"] or 0.0',
        "tests/test_groups.py::test_the_last_step_is_shown_group_by_group_the_best_first",
    ),
)
