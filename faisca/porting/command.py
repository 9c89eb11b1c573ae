"""`faisca port`: its options, and what it prints."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.backends import BACKENDS
from faisca.commands.parse import parse, print_json
from faisca.errors import FaiscaError
from faisca.porting.formats import ADAPTER_FORMATS, FORMATS

if TYPE_CHECKING:
    FormatName = str
else:  # checked, and listed in the help
    FormatName = Literal[(*FORMATS, *ADAPTER_FORMATS)]
FORMAT_WORDS = {
    "faisca": "a faisca run folder",
    **{name: row.file_words for name, row in BACKENDS.items()},
    "hf": "a Hugging Face folder",
    "peft": "a PEFT adapter",
    "mlx-lm": "an mlx-lm adapter",
}


@dataclass(frozen=True, kw_only=True)
class PortOptions:
    """Options of `faisca port`."""

    source: Annotated[
        Positional[Path],
        arg(metavar="SOURCE", help="a run or checkpoint, a Hugging Face folder, an id on its hub, or a weights file"),
    ]
    target: Annotated[Positional[Path], arg(metavar="TARGET", help="what to write: it must not exist yet")]
    to: Annotated[
        FormatName,
        arg(
            help="faisca or hf: a folder; torch: a .safetensors file; mlx: a .safetensors or .npz file; "
            "peft or mlx-lm: the folder of an adapter"
        ),
    ]
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        arg(help_behavior_hint="(default: as in the source; a run's are float32)"),
    ] = "auto"
    """what weights are written as"""
    no_verify: FlagCreatePairsOff[bool] = False
    """write without comparing: for where the target's library is not installed"""
    num_heads: Annotated[int | None, arg(metavar="HEADS", help_behavior_hint="(default: 4, the original's)")] = None
    """attention heads of a state dict that has no JSON beside it"""
    tokenizer: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """the tokenizer.json of a source that has none"""
    base: Annotated[Path | None, arg(metavar="SOURCE", help_behavior_hint="")] = None
    """the model that an adapter belongs to, where the source or the target is one"""
    push_to_hub: Annotated[str | None, arg(metavar="OWNER/NAME", help_behavior_hint="")] = None
    """upload what --to hf has written, the model card included, to the Hugging Face hub as well"""
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead of a table"""


def port(argv: list[str]) -> int:
    """Bring a model from one format to another. The source's format is detected;
    the target is loaded by its own library and compared with the source: logits,
    greedy tokens, end of text, tokenizer. A target that differs is removed.

    Hugging Face folders come in as GPT-2, Llama (SmolLM2, TinyLlama), Mistral
    without a sliding window, Qwen2.5 or Qwen3, and as mixtures of experts:
    Mixtral, OLMoE or Qwen3-MoE. What such a folder has and our model does not
    compute is refused by name. A model goes out as the family that computes it.

    An adapter (LoRA) goes from a run to PEFT's and mlx-lm's folders and back,
    beside the model that it was trained on, which --base names.

    examples:
      faisca port runs/spark spark-hf --to hf
      faisca port runs/spark spark.safetensors --to torch
      faisca port runs/spark spark.npz --to mlx
      faisca port gpt2-folder runs/gpt2 --to faisca
      faisca port HuggingFaceTB/SmolLM2-135M runs/smollm2 --to faisca
      faisca port runs/smollm2 smollm2-small --to hf --dtype bfloat16
      faisca port original.pt runs/original --to faisca
      faisca port runs/tuned adapter --to peft --base smollm2
      faisca port adapter runs/tuned --to faisca --base smollm2
    """
    options = parse(PortOptions, argv, command="port", help=port.__doc__)
    if options.num_heads is not None and options.num_heads < 1:
        raise FaiscaError(f"--num-heads {options.num_heads} is out of range: use a number at least 1")
    from faisca.porting import adapters, hub
    from faisca.porting import port as porting

    if options.to in ADAPTER_FORMATS or adapters.holds_adapter(options.source):
        return _port_adapter(options)
    if options.base is not None:
        raise FaiscaError(f"--base does not go with {options.source}, which is no adapter: leave it out")
    if options.push_to_hub:
        hub.check_push(options.push_to_hub, options.to)
    done = porting.port(
        options.source,
        options.target,
        options.to,
        verify=not options.no_verify,
        dtype=options.dtype,
        num_heads=options.num_heads,
        tokenizer=options.tokenizer,
    )
    _say_unverified(options)
    address = hub.push(options.target, options.push_to_hub) if options.push_to_hub else None
    if options.json:
        print_json(_as_dict(options, done) | {"pushed_to": address})
        return 0
    _show(options, done)
    if address:
        print(f"pushed to {address}")
    return 0


def _port_adapter(options: PortOptions) -> int:
    """Of an adapter; the options of a model's file mean nothing there."""
    from faisca.porting.adapters import port_adapter

    for name in ("num_heads", "tokenizer", "push_to_hub"):
        if getattr(options, name) is not None:
            raise FaiscaError(f"--{name.replace('_', '-')} does not go with an adapter: leave it out")
    if options.dtype not in ("auto", "float32"):
        raise FaiscaError(f"--dtype {options.dtype} does not go with an adapter, which is float32: leave it out")
    done = port_adapter(options.source, options.target, options.to, options.base, verify=not options.no_verify)
    _say_unverified(options)
    if options.json:
        print_json(
            {
                "source": {"path": str(options.source), "found": done.found},
                "target": {"path": str(options.target), "format": options.to},
                "base": str(options.base),
                "adapter": asdict(done.model.adapter),
                "verified": bool(done.comparisons),
                "comparisons": [asdict(comparison) for comparison in done.comparisons],
            }
        )
        return 0
    verified = "verified" if done.comparisons else "NOT verified"
    adapter = done.model.adapter
    print(f"{options.source}: {done.found}, alpha {adapter.alpha:g}, of {' '.join(adapter.targets)}")
    print(f"{options.target}: {FORMAT_WORDS[options.to]}, beside {options.base}, {verified}")
    show_comparisons(done.comparisons)
    return 0


def _say_unverified(options: PortOptions) -> None:
    if options.no_verify:
        print("faisca: NOT VERIFIED: nobody compared this target with its source (--no-verify)", file=sys.stderr)


def _as_dict(options: PortOptions, done: Any) -> dict[str, Any]:
    from faisca.parameters import count_parameters

    return {
        "source": {"path": str(options.source), "format": done.source.format, "found": done.source.found},
        "target": {"path": str(options.target), "format": options.to, "dtype": done.dtype},
        "parameters": count_parameters(done.source.model),
        "verified": bool(done.comparisons),
        "answered_by": done.answered_by,
        "comparisons": [asdict(comparison) for comparison in done.comparisons],
        "notes": done.notes,
    }


def _show(options: PortOptions, done: Any) -> None:
    from faisca.system.tables import PlainConsole

    console = PlainConsole()
    lines = [f"{options.source}: {done.source.found}", *(f"note: {note}" for note in done.notes)]
    verified = f"verified: {done.answered_by} answered for the source" if done.comparisons else "NOT verified"
    lines.append(f"{options.target}: {FORMAT_WORDS[options.to]}, {done.dtype}, {verified}")
    console.print("\n".join(lines), soft_wrap=True)
    show_comparisons(done.comparisons)


def show_comparisons(comparisons: list[Any]) -> None:
    """A row for each library that read the target; nothing where nothing was asked."""
    from rich import box
    from rich.table import Table

    from faisca.system.tables import PlainConsole, print_table

    console = PlainConsole()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("read by")
    for title in ("logits differ by", "greedy tokens", "end of text", "texts"):
        table.add_column(title, justify="right")
    for row in comparisons:
        ties = f", {row.ties} ties" if row.ties else ""
        table.add_row(
            row.library,
            f"{row.largest_logit_difference:.1e} < {row.logit_limit:.1e}",
            f"{row.equal_tokens} of {row.tokens}{ties}",
            ", ".join(map(str, row.end_of_text_ids)),
            f"{row.equal_texts} of {row.texts}",
        )
    if comparisons:
        console.print()
        print_table(console, table)
