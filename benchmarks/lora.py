"""LoRA on a real model beside PEFT and mlx-lm: losses, seconds a step, peak memory, and the same headline everywhere.

    python benchmarks/lora.py FOLDER --data SOURCE --out OUT [--steps 50] [--rows 4] [--length 64] [--rounds 3]

FOLDER is a Hugging Face folder, as `benchmarks/smollm2.py` makes one. Each of six trainees takes the same steps on the
same windows of headlines, in float32 on the CPU, adapters from the same beginning, each in a process of its own: our
twins with an adapter and with all weights, PEFT's model under a loop of torch's, and mlx-lm's own trainer. They take
turns, `--rounds` times over. Then the adapters of both twins go to PEFT's and mlx-lm's folders, verified there, and the
likeliest headline is written with each: by us, by transformers with peft, and by `python -m mlx_lm generate`.

OUT/results.json has it all. Exit status 1 where the twins' losses are further apart than 1e-3, or a headline differs.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from faisca.config import AdaptedModel, Adapter, DataConfig, OptimizerConfig, RunConfig, TrainConfig
from faisca.config.rules import possible_targets
from faisca.lora import with_adapter
from faisca.parameters import initial_adapter
from faisca.porting.adapter_folders import read_adapter, write_adapter
from faisca.porting.adapters import port_adapter
from faisca.porting.folders import write_view
from faisca.porting.formats import Portable
from faisca.porting.port import read_source
from faisca.porting.run_folders import write_run

TRAINEES = ("torch adapter", "mlx adapter", "torch all", "mlx all", "peft", "mlx_lm")
APART = 1e-3
"""nats by which the twins' losses may differ at any step"""
RATE = {"adapter": 3e-4, "all": 3e-5}
NEW_TOKENS = 16
UNTIMED = 2
"""steps at the beginning, which load and compile"""


def prepare(options: argparse.Namespace) -> None:
    """The windows, and the adapters' beginning in the three formats."""
    from faisca.data.headlines import load_headlines, stage_titles
    from faisca.data.token_cache import tokenise
    from faisca.data.windows import Windows, training_batch

    base = read_source(options.folder)
    headlines = load_headlines(DataConfig(source=options.data), seed=0)
    titles, _ = stage_titles(headlines, TrainConfig(), seed=0, stage="pretrain")
    windows = Windows(tokenise(titles, base.tokenizer), options.length, options.length)
    steps = range(options.steps)
    batches = [training_batch(windows, batch_size=options.rows, seed=0, stage="sft", step=step) for step in steps]
    options.out.mkdir(parents=True)
    write_view(base, options.folder, view(options))  # mlx-lm passes over a rotation as transformers 5 writes it
    np.savez(options.out / "batches.npz", inputs=[one for one, _ in batches], targets=[two for _, two in batches])
    model = adapted(base, options)
    for format in ("peft", "mlx-lm"):
        write_adapter(options.out / f"begin-{format}", format, base, model, begin(model), str(options.folder))


def view(options: argparse.Namespace) -> Path:
    """The folder as both libraries read it; its weights are links."""
    return Path(options.out / "base")


def adapted(base: Portable, options: argparse.Namespace) -> AdaptedModel:
    """The model with an adapter of all its matrices."""
    return with_adapter(base.model, Adapter(options.rank, 2.0 * options.rank, 0.0, possible_targets(base.model)))


def begin(model: AdaptedModel) -> dict[str, np.ndarray]:
    return initial_adapter(model, 0, {})


# --- trainees, each in a process of its own -----------------------------------------------------


def work(trainee: str, options: argparse.Namespace) -> dict[str, Any]:
    """Losses and seconds of every step, and the process's peak."""
    loaded = np.load(options.out / "batches.npz")
    batches = list(zip(loaded["inputs"], loaded["targets"], strict=True))
    if trainee == "peft":
        losses, seconds = train_peft(batches, options)
    elif trainee == "mlx_lm":
        losses, seconds = train_mlx_lm(batches, options)
    else:
        losses, seconds = train_ours(trainee, batches, options)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"losses": losses, "seconds": seconds, "resident": resident} | device_peak(trainee)


def device_peak(trainee: str) -> dict[str, int]:
    """What MLX itself counts."""
    if "mlx" not in trainee:
        return {}
    import mlx.core as mx

    return {"device": mx.get_peak_memory()}


def train_ours(trainee: str, batches: list[Any], options: argparse.Namespace) -> tuple[list[float], list[float]]:
    from faisca.backend import load_backend

    name, what = trainee.split()
    backend, base = load_backend(name), read_source(options.folder)
    model = adapted(base, options) if what == "adapter" else base.model
    parameters = {**base.parameters, **(begin(model) if isinstance(model, AdaptedModel) else {})}
    runtime = backend.open_runtime(config=RunConfig(device="cpu", dtype="float32"))
    made = backend.make_model(config=model, parameters=parameters, runtime=runtime)
    del parameters
    learner = backend.make_learner(model=made, config=OptimizerConfig(weight_decay=0.0, clip_norm=0.0))
    losses, seconds = [], []
    for step, (inputs, targets) in enumerate(batches):
        began = time.perf_counter()
        common = {"learning_rate": RATE[what], "micro_batch_size": 0, "dropout_seed": step}
        metrics = backend.train_step(learner=learner, inputs=inputs, targets=targets, **common)
        losses.append(backend.read_metrics(metrics=[metrics])[0]["loss"])
        seconds.append(time.perf_counter() - began)
    target = options.out / f"run-{name}"
    if isinstance(model, AdaptedModel) and not target.exists():
        write_run(base, target, model, backend.get_parameters(model=learner.model))
    return losses, seconds


def train_peft(batches: list[Any], options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """PEFT's model in the plainest loop of torch's."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(view(options), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(options.out / "begin-peft"), is_trainable=True).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE["adapter"], weight_decay=0.0)
    losses, seconds = [], []
    for inputs, targets in batches:
        began = time.perf_counter()
        logits = model(torch.from_numpy(inputs).long(), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).long().flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    return losses, seconds


def train_mlx_lm(batches: list[Any], options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """What `mlx_lm lora` calls: its own trainer, loss and compiled step, on our windows, with a BLAS like ours."""
    from faisca.system.fast_blas import load_fast_blas

    load_fast_blas()  # before MLX, which on Linux comes with one that is many times slower
    import mlx.core as mx
    import mlx.optimizers as optim
    import mlx_lm
    from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback, train

    mx.set_default_device(mx.cpu)
    model, _ = mlx_lm.load(str(view(options)), adapter_path=str(options.out / "begin-mlx-lm"))
    model.freeze()
    model.unfreeze(keys=["lora_a", "lora_b"], strict=False)
    losses, seconds = [], []

    class Noting(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, train_info: dict[str, float]) -> None:
            losses.append(train_info["train_loss"])
            seconds.append(1 / train_info["iterations_per_second"])

    def given(**_: object) -> Any:
        for inputs, targets in batches:
            tokens = mx.array(np.concatenate([inputs, targets[:, -1:]], axis=1))
            yield tokens, mx.array([[1, inputs.shape[1]]] * len(inputs))

    train(
        model,
        optim.AdamW(RATE["adapter"], weight_decay=0.0, bias_correction=True),
        batches,
        args=TrainingArgs(
            batch_size=options.rows,
            iters=len(batches),
            steps_per_report=1,
            adapter_file=str(options.out / "mlx_lm.safetensors"),
        ),
        iterate_batches=given,
        training_callback=Noting(),
    )
    return losses, seconds


# --- the same headline everywhere ---------------------------------------------------------------


def headlines(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The likeliest headline of both twins' adapters, by each that can read them."""
    found = {}
    for name in ("torch", "mlx"):
        source = options.out / f"run-{name}"
        for format in ("peft", "mlx-lm"):
            port_adapter(source, options.out / f"{name}-{format}", format, options.folder)
        found[name] = {
            "faisca": ours(source, name, options.prompt),
            "transformers and peft": theirs(view(options), options.out / f"{name}-peft", options.prompt),
            "mlx_lm generate": generated(view(options), options.out / f"{name}-mlx-lm", options.prompt),
        }
        read_adapter(options.out / f"{name}-peft", read_source(options.folder))  # and comes back
    return found


def ours(run: Path, backend: str, prompt: str) -> str:
    import faisca
    from faisca.backend import Sampling
    from faisca.training.generate import complete

    model = faisca.load(run, backend=backend, device="cpu", dtype="float32")
    likeliest, no_draws = Sampling(0.0, 0, 1.0, NEW_TOKENS), np.zeros((1, NEW_TOKENS), np.float32)
    ids = model.tokenizer.encode(prompt)
    (tokens,) = complete(model.setup, model.model, [ids], likeliest, no_draws)
    return model.tokenizer.decode([token for token in tokens if token not in model.tokenizer.ends]).strip()


def theirs(folder: Path, adapter: Path, prompt: str) -> str:
    import peft
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(adapter))
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def generated(folder: Path, adapter: Path, prompt: str) -> str:
    words = [
        "--model",
        folder,
        "--adapter-path",
        adapter,
        "--prompt",
        prompt,
        "--temp",
        "0",
        "--max-tokens",
        NEW_TOKENS,
    ]
    flags = ["--ignore-chat-template", "--verbose", "False"]
    begin = "from faisca.system.fast_blas import load_fast_blas; load_fast_blas()"
    program = f"{begin}; from mlx_lm.generate import main; main()"  # `python -m mlx_lm generate`, with a fast BLAS
    command = [sys.executable, "-c", program, *map(str, words), *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


# --- all of it ----------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All trainees in turn, some rounds, each in a process of its own."""
    found: dict[str, list[dict[str, Any]]] = {trainee: [] for trainee in options.trainees.split(",")}
    for _ in range(options.rounds):
        for trainee in found:
            command = [sys.executable, __file__, *sys.argv[1:], "--trainee", trainee]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
            found[trainee].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{trainee}: {statistics.median(found[trainee][-1]['seconds'][UNTIMED:]):.3f} s a step", flush=True)
    return found


def conclude(found: dict[str, list[dict[str, Any]]], written: dict[str, dict[str, str]]) -> dict[str, Any]:
    """One row a trainee, and what must hold."""
    rows = {
        trainee: {
            "seconds_a_step": statistics.median(s for one in rounds for s in one["seconds"][UNTIMED:]),
            "resident_bytes": max(one["resident"] for one in rounds),
            "device_bytes": max((one["device"] for one in rounds if "device" in one), default=None),
            "first_loss": rounds[0]["losses"][0],
            "last_loss": rounds[0]["losses"][-1],
        }
        for trainee, rounds in found.items()
    }
    curves = {trainee: np.array(rounds[0]["losses"]) for trainee, rounds in found.items()}
    yardstick = curves["torch adapter"]
    apart = {name: float(np.abs(curve - yardstick).max()) for name, curve in curves.items() if "all" not in name}
    same = {name: len(set(texts.values())) == 1 for name, texts in written.items()}
    return {"trainees": rows, "losses_apart": apart, "headlines": written, "same_headline": same}


def table(concluded: dict[str, Any]) -> str:
    lines = ["| trainee | s a step | resident | MLX's count | loss |", "|---|---:|---:|---:|---:|"]
    for name, row in concluded["trainees"].items():
        device = f"{row['device_bytes'] / 1e9:.2f} GB" if row["device_bytes"] else "–"
        losses = f"{row['first_loss']:.4f} → {row['last_loss']:.4f}"
        lines.append(
            f"| {name} | {row['seconds_a_step']:.3f} | {row['resident_bytes'] / 1e9:.2f} GB | {device} | {losses} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True, metavar="SOURCE")
    parser.add_argument("--out", type=Path, required=True)
    for name, default in {"steps": 50, "rows": 4, "length": 64, "rounds": 3, "rank": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--prompt", default="Presidente")
    parser.add_argument("--trainees", default=",".join(TRAINEES), help="who takes part, both twins' adapters at least")
    parser.add_argument("--trainee", choices=TRAINEES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trainee:
        print(json.dumps(work(options.trainee, options)))
        return 0
    prepare(options)
    found = measure(options)
    concluded = conclude(found, headlines(options))
    (options.out / "results.json").write_text(json.dumps(concluded | {"rounds": found}, indent=1) + "\n")
    print(table(concluded), json.dumps({k: v for k, v in concluded.items() if k != "trainees"}, indent=1), sep="\n")
    return int(concluded["losses_apart"]["mlx adapter"] > APART or not all(concluded["same_headline"].values()))


if __name__ == "__main__":
    sys.exit(main())
