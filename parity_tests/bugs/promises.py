"""What a user gave is not honoured, and nothing is said."""

from bugs.mutation import Mutation

RUN, START, CHANGES, DATA = (
    "faisca/training/run.py",
    "faisca/training/start.py",
    "faisca/runs/changes.py",
    "faisca/data/headlines.py",
)
KEPT = "tests/test_promises.py"
BUGS = (
    Mutation(
        "another seed holds out other titles than the checkpoint's",
        RUN,
        "hold_out_seed = held_out_by(config, checkpoint)",
        "hold_out_seed = config.run.seed",
        KEPT + "::test_another_seed_holds_out_the_titles_of_the_checkpoint",
    ),
    Mutation(
        "titles that the model has seen are validation",
        DATA,
        "unseen = pa.array(~np.isin(_hashes(validation",
        "unseen = pa.array(~np.isin(~_hashes(validation",
        KEPT + "::test_a_split_of_its_own_is_measured_without_what_the_model_saw",
    ),
    Mutation(
        "a stage's titles are not noted as seen",
        RUN,
        "np.union1d(self.seen, self.hashes.get(stage, NOTHING_SEEN))",
        "self.seen",
        KEPT + "::test_a_split_of_its_own_is_measured_without_what_the_model_saw",
    ),
    Mutation(
        "evaluate holds out by its own seed",
        "faisca/loaded_model.py",
        "held_out_by(config, self.checkpoint)",
        "config.run.seed",
        KEPT + "::test_evaluate_measures_on_the_titles_that_the_model_never_saw",
    ),
    Mutation(
        "dropout of a run that begins with a checkpoint is the checkpoint's",
        START,
        "settings = {name: getattr(config.model, name) for name in SETTINGS}",
        "settings = {name: getattr(state.model, name) for name in SETTINGS}",
        KEPT + "::test_settings_of_training_apply_and_are_said",
    ),
    Mutation(
        "a model that contradicts the weights is passed over",
        START,
        'for section in ("model", "tokenizer"):',
        'for section in ("tokenizer",):',
        KEPT + "::test_what_contradicts_the_weights_is_refused",
    ),
    Mutation(
        "options of a finished stage are taken and do nothing",
        CHANGES,
        'if section != "run" and (over or not stages_to_do(config, state)):',
        "if not STAGES:",
        KEPT + "::test_a_finished_stage_takes_no_more_options",
    ),
    Mutation(
        "a change of a stage under way is not said",
        CHANGES,
        "for name, before, now in _changes(state.config, config)\n    ]",
        "for name, before, now in _changes(state.config, config)\n        if not name.startswith(state.stage)\n    ]",
        KEPT + "::test_a_resumed_run_says_what_changed_and_what_follows",
    ),
)
