"""What a user may have meant by a command or an option that does not exist."""

import difflib
from collections.abc import Iterable

from faisca.text import suggest

OTHER_COMMANDS = {
    **dict.fromkeys(("train", "start", "fit"), "run (all stages) or pretrain (the first)"),
    **dict.fromkeys(("finetune", "fine-tune", "tune"), "sft"),
    **dict.fromkeys(("rl", "reinforce", "ppo"), "grpo"),
    **dict.fromkeys(("sample", "infer", "predict", "chat", "write"), "generate"),
    **dict.fromkeys(("export", "import", "convert"), "port"),
    **dict.fromkeys(("eval", "test"), "evaluate"),
    **dict.fromkeys(("show", "info"), "inspect"),
    **dict.fromkeys(("ls", "list"), "runs"),
    **dict.fromkeys(("plot", "dashboard", "view", "html"), "report"),
    "resume": "run --resume RUN",
    "version": "--version",
}
"""what other programs call our commands"""

OTHER_OPTIONS = {
    **dict.fromkeys(("lr", "max-lr"), "learning-rate"),
    **dict.fromkeys(("bs", "batch"), "batch-size"),
    **dict.fromkeys(("wd", "decay"), "weight-decay"),
    **dict.fromkeys(("iters", "max-iters", "num-steps"), "max-steps"),
    **dict.fromkeys(("epoch", "num-epochs", "num-train-epochs"), "epochs"),
    **dict.fromkeys(("layers", "n-layer", "n-layers"), "num-layers"),
    **dict.fromkeys(("heads", "n-head", "n-heads"), "num-heads"),
    **dict.fromkeys(("n-embd", "hidden-size", "d-model"), "dim"),
    **dict.fromkeys(("block-size", "seq-len", "max-length"), "context"),
    **dict.fromkeys(("output", "output-dir", "out-dir"), "out"),
    **dict.fromkeys(("checkpoint", "init-from", "model-path"), "from"),
    **dict.fromkeys(("max-tokens", "length"), "max-new-tokens"),
    **dict.fromkeys(("num-samples", "count"), "n"),
    **{"temp": "temperature", "dataset": "data"},
}
"""what other programs call our options"""

ALIKE = 0.75
"""how alike two options must be: below, it is chance (--wandb and --backend, --foo and --from)"""


def suggest_command(name: str, commands: Iterable[str]) -> str:
    """The remedy for an unknown command."""
    meant = OTHER_COMMANDS.get(name.lower())
    return f"did you mean {meant}?" if meant else suggest(name, commands)


def suggest_option(option: str, options: list[str], command: str) -> str:
    """The remedy for an unknown option: what is alike, in every section or in the command's own; empty if nothing."""
    section, dot, word = option.lstrip("-").lower().rpartition(".")
    by_word: dict[str, list[str]] = {}
    for name in options:
        for spelling in {name.lstrip("-"), name.lstrip("-").rpartition(".")[2]}:
            by_word.setdefault(spelling, []).append(name)
    wanted = f"{section}{dot}{OTHER_OPTIONS.get(word, word)}"
    close = difflib.get_close_matches(wanted, by_word, n=1, cutoff=ALIKE)
    found = by_word[close[0]] if close else []
    found = [name for name in found if name.startswith(f"--{command}.")] or found
    *most, last = found or [""]
    return f"did you mean {', '.join(most)}{' or ' * bool(most)}{last}?" if found else ""
