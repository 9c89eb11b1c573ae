"""What a run begins with: a checkpoint's weights, with what belongs to them; conversations in the place of titles;
what GRPO asks, and how it judges."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from faisca.config import Config, GRPOConfig, ModelConfig, RunConfig, TokenizerConfig, plain
from faisca.config.files import Sections, config_text, sections_of
from faisca.data.chat import ChatTemplate
from faisca.data.conversations import ConversationSplits, encode_rows, read_rows
from faisca.data.headlines import Headlines
from faisca.data.sources import is_path
from faisca.data.windows import Rows, steps_per_epoch
from faisca.errors import FaiscaError
from faisca.parameters import count_parameters
from faisca.planning.fit import usable_memory, warnings
from faisca.processes.join import code_sha256
from faisca.rewards.judge import Judge
from faisca.runs.checkpoint import Checkpoint
from faisca.runs.manifest import MANIFEST, sha256
from faisca.runs.state import IMPORTED, Progress, State
from faisca.system.progress_bar import track_if_long
from faisca.system.tables import PlainConsole
from faisca.training.generate import encode_prompt, ends_in_space
from faisca.training.setup import Setup

SETTINGS = ("dropout", "attention_dropout", "balance_weight", "router_z_weight")
"""of the model: how it is trained, and not what it is"""


def own_sections(state: State) -> Sections:
    """What the run of a checkpoint was configured with, but for how it ran: its seed alone."""
    return sections_of(state.config) | {"run": RunConfig(seed=state.config.run.seed)}


def inherit(sections: Sections, state: State) -> Sections:
    """`sections` with what belongs to a checkpoint's weights: model, tokenizer, and the share that is held out."""
    data = sections["data"]
    if state.hold_out_seed is not None:
        data = dataclasses.replace(data, validation_share=state.config.data.validation_share)
    model = dataclasses.replace(plain(state.model), vocabulary_size=state.config.model.vocabulary_size)
    return sections | {"model": model, "tokenizer": _tokenizer(state), "data": data}


def check_start(config: Config, checkpoint: Checkpoint) -> Config:
    """`config` with the checkpoint's own model; FaiscaError where it asks for what contradicts the weights."""
    held_out_by(config, checkpoint)  # refuses another share
    state, same = checkpoint.state, inherit(dict(vars(config)), checkpoint.state)
    for section in ("model", "tokenizer"):
        for name, theirs in vars(same[section]).items():
            wanted = getattr(getattr(config, section), name)
            if wanted != theirs and not (section == "model" and _may_differ(name, wanted, state.model)):
                raise _contradiction(f"{section}.{name}", wanted, theirs, checkpoint)
    settings = {name: getattr(config.model, name) for name in SETTINGS}
    return dataclasses.replace(config, model=dataclasses.replace(same["model"], **settings))


def held_out_by(config: Config, checkpoint: Checkpoint | None) -> int:
    """The seed that holds titles out where a source has no validation split: a checkpoint brings its own.

    FaiscaError where another share of the titles is asked for than the checkpoint was trained without.
    """
    if checkpoint is None or checkpoint.state.hold_out_seed is None:
        return config.run.seed
    wanted, theirs = config.data.validation_share, checkpoint.state.config.data.validation_share
    if wanted != theirs:
        raise _contradiction("data.validation_share", wanted, theirs, checkpoint)
    return checkpoint.state.hold_out_seed


def start_words(config: Config, checkpoint: Checkpoint) -> list[str]:
    """What a run that begins with a checkpoint says of it: what it takes, and what it changes.

    Raises FaiscaError where its data are to be taken, and the files are not there.
    """
    state, seed = checkpoint.state, config.run.seed
    words = [f"starting from {checkpoint.folder}: its model, tokenizer and weights; {compare_data(config, checkpoint)}"]
    changed = [name for name in SETTINGS if getattr(config.model, name) != getattr(state.model, name)]
    words += [f"model.{name} {getattr(config.model, name)}; so far {getattr(state.model, name)}" for name in changed]
    if state.hold_out_seed not in (None, seed):
        words.append(
            f"titles are held out as for the checkpoint, by seed {state.hold_out_seed} and not by {seed}: "
            "it was trained on the others"
        )
    return words


def compare_data(config: Config, checkpoint: Checkpoint) -> str:
    """Whether a run measures on the titles that its checkpoint was trained and measured on, in words."""
    source, begun, data = config.data.source, checkpoint.state.config, config.data
    if checkpoint.state.backend == IMPORTED:
        return f"data: {source} (what an imported model was trained on is not known)"
    if dataclasses.replace(begun.data, window=data.window, stride=data.stride) != data:  # windows change no title
        theirs = begun.data.source if begun.data.source != source else "the same source with other options"
        return f"data: {source}, not its own ({theirs}): losses cannot be compared with those of that run"
    if is_path(source) and not Path(source).expanduser().exists():
        raise FaiscaError(
            f"{checkpoint.folder} was trained on {source}, which does not exist here: name it with --data PATH, "
            "or other data, with which losses cannot be compared with those of that run"
        )
    return f"its data, {source}"


def _contradiction(name: str, wanted: object, theirs: object, checkpoint: Checkpoint) -> FaiscaError:
    return FaiscaError(
        f"{name} {wanted} does not go with {checkpoint.folder}: it has {theirs}, which belongs to its weights; "
        f"leave --{name.replace('_', '-')} out, or train a new model"
    )


def _may_differ(name: str, wanted: object, model: ModelConfig) -> bool:
    """Settings of training, and the real size of the vocabulary in words of its own."""
    return name in SETTINGS or (name == "vocabulary_size" and wanted in (0, model.vocabulary_size))


def _tokenizer(state: State) -> TokenizerConfig:
    """The tokenizer's section, which older versions wrote wrong where a run began with --from."""
    kind, saved = state.tokenizer.get("kind", state.config.tokenizer.kind), state.config.tokenizer
    return saved if saved.kind == kind else TokenizerConfig(kind, state.model.vocabulary_size)  # type: ignore[arg-type]


def without_filter(config: Config) -> Config:
    """The configuration without SFT's filter of addresses where it learns from conversations, which have none."""
    if not config.sft.conversations:
        return config
    return dataclasses.replace(config, sft=dataclasses.replace(config.sft, url_contains=""))


def open_conversations(setup: Setup, seed: int) -> ConversationSplits | None:
    """What SFT learns from where it is not titles, held out by `seed`; FaiscaError for what is no conversation."""
    config = setup.config
    if not config.sft.conversations or "sft" not in config.run.stages:
        return None
    template, rows = ChatTemplate(setup.tokenizer), read_rows(config.sft.conversations)
    window, share = config.data.window, config.data.validation_share
    with track_if_long(PlainConsole(stderr=True), "tokenising conversations", len(rows)) as told:
        chats = encode_rows(rows, template, window=window, share=share, seed=seed, told=told)
    steps_per_epoch(chats.train, config.sft.batch_size)  # refuses a batch that is too large
    return chats


def note_data(progress: Progress, sha256: str, say: Callable[[str], None]) -> None:
    """Remember what a stage trains on; say so where a resumed one has other data than it began with."""
    before, progress.data_sha256 = progress.data_sha256, sha256
    if before not in ("", sha256):
        say("the training data have changed since the checkpoint: the run goes on with the new ones")


def with_prompts_at_hand(config: Config, say: Callable[[str], None]) -> Config:
    """The configuration of a checkpoint from elsewhere: without its file of prompts where that is not here."""
    file = config.grpo.prompts_file
    if not file or Path(file).expanduser().is_file():
        return config
    say(f"grpo.prompts_file {file} is not here: grpo.prompts stand in for it")
    return dataclasses.replace(config, grpo=dataclasses.replace(config.grpo, prompts_file=""))


def open_judge(grpo: GRPOConfig) -> Judge:
    """The rewards of a run, which is to close them."""
    return Judge(grpo.reward, grpo.reward_weights, workers=grpo.reward_workers, timeout=grpo.reward_timeout)


def check_tasks(setup: Setup) -> None:
    """FaiscaError for a prompt that does not fit the context, or lacks what a reward asks for."""
    for task in setup.tasks.all:
        try:
            encode_prompt(setup.tokenizer, task.prompt, setup.model_config.context)
        except FaiscaError as error:
            raise FaiscaError(f"{task.where}: {error}" if task.where else str(error)) from error
    if setup.reward is not None:
        file = setup.config.grpo.prompts_file
        setup.reward.check(setup.tasks.columns, f"grpo.prompts_file {file}" if file else "grpo.prompts")


def _task_words(setup: Setup) -> Iterator[str]:
    """What a run says of its prompts and rewards."""
    grpo = setup.config.grpo
    for prompt in filter(ends_in_space, () if grpo.prompts_file else grpo.prompts):
        yield f"prompt {prompt!r}: the space at its end is left out, for tokens bring their own"
    if grpo.prompts_file:
        columns = f" with columns {', '.join(setup.tasks.columns)}" if setup.tasks.columns else ""
        yield f"grpo asks {len(setup.tasks.all):,} prompts from {grpo.prompts_file}{columns}; grpo.prompts are left out"
    if grpo.reward_timeout and not grpo.reward_workers:
        yield "grpo.reward_timeout needs a process that can be ended: one computes the rewards"


OWN = ("backend", "device", "dtype", "compile", "loss_chunk", "attention", "cache_limit_gb", "tracker", "preflight")
"""of `run`: how a process computes, which may differ from another's"""


def facts_of(setup: Setup, windows: Mapping[str, Rows], checkpoint: Checkpoint | None) -> dict[str, str]:
    """What all processes of a run must agree on, most as checksums."""
    usual, run = RunConfig(), setup.config.run
    same = dataclasses.replace(
        setup.config, run=dataclasses.replace(run, **{name: getattr(usual, name) for name in OWN})
    )
    facts = {"code": code_sha256(), "options": sha256(config_text(same).encode())}
    facts |= {f"training data of {stage}": sha256(rows.tokens.tobytes()) for stage, rows in windows.items()}
    if checkpoint is not None:
        facts["checkpoint"] = sha256((checkpoint.folder / MANIFEST).read_bytes())
    return facts | {f"version of {setup.runtime.backend}": setup.runtime.details[setup.runtime.backend]}


def opening_words(setup: Setup, headlines: Headlines) -> Iterator[str]:
    """What a run says when it begins: why it computes as it does, on which data, with which model."""
    config, tokenizer = setup.model_config, setup.tokenizer
    yield from setup.runtime.reasons
    yield "; ".join(f"{name} {value}" for name, value in setup.runtime.details.items())
    yield f"data: {headlines.report}"
    yield (
        f"model: {count_parameters(config):,} parameters, {config.num_layers} blocks of width {config.dim}, "
        f"context {config.context}; tokenizer {tokenizer.kind} with {tokenizer.vocabulary_size:,} tokens"
    )
    yield from warnings(setup.config, config, setup.runtime, usable_memory(setup.backend, setup.runtime))
    yield from _task_words(setup)
