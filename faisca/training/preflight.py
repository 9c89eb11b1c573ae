"""Before the first step of a stage: proof that the device computes it right, or another way that does.

`run.preflight` says when: auto on every GPU, for the CPU is what is compared with.
"""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from itertools import count

import numpy as np

from faisca.backend import Model
from faisca.certificate.certify import Verdict, find_safe, units
from faisca.certificate.work import Work, uneven
from faisca.config import Config, ModelConfig
from faisca.data.prompts import open_tasks
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.planning.load import rows_of
from faisca.runs.state import Progress
from faisca.training.adapters import weights
from faisca.training.generate import encode_prompt
from faisca.training.grpo import LENGTH_STEP
from faisca.training.run import Run


def preflight(run: Run, progress: Progress, model: Model) -> Model:
    """The model that the stage trains: this one, or one that computes in the first way that is right.

    FaiscaError where none is; the verdict stands in `metrics.jsonl` and in the stage's entry of the summary.
    """
    setup, stage = run.setup, progress.stage
    wanted = setup.config.run.preflight
    if wanted == "off" or (wanted == "auto" and setup.runtime.device == "cpu"):
        return model
    longest = longest_prompt(setup.config, setup.tokenizer, setup.model_config.context)
    parameters = weights(run, model)
    work = stage_work(setup.config, setup.model_config, stage, parameters, longest).on(setup.runtime.device)
    done, total = count(1), units(work)
    with run.log.track(f"preflight of {stage}", total) as tracker:
        verdict = find_safe(
            setup.backend, setup.config.run, work, run.log.say, lambda: tracker.update(min(next(done), total))
        )
    run.certificates[stage] = verdict.to_json()
    run.log.record(stage=stage, step=progress.step, certificate=verdict.to_json())
    run.log.flush()
    if not verdict.certificate.passed:
        raise FaiscaError(_refusal(run, stage, verdict))
    run.log.say(verdict_words(stage, verdict))
    runtime = replace(verdict.certificate.runtime, processes=setup.processes)  # each has proved it for itself
    if runtime == setup.runtime:
        return model
    run.setup = replace(setup, runtime=runtime)
    return run.setup.make_model(parameters)


def longest_prompt(config: Config, tokenizer: Tokenizer, context: int) -> int:
    """Tokens of GRPO's longest prompt."""
    tasks = open_tasks(config.grpo.prompts, config.grpo.prompts_file)
    return max(len(encode_prompt(tokenizer, task.prompt, context)) for task in tasks.all)


def stage_work(
    config: Config, model: ModelConfig, stage: str, parameters: Mapping[str, np.ndarray], prompt: int
) -> Work:
    """The shapes of a stage's steps; `prompt` is the number of tokens in GRPO's longest."""
    seed, weights = config.run.seed, uneven(parameters, config.run.seed)
    if stage != "grpo":
        return Work(stage, model, weights, rows_of(config, stage), min(config.data.window, model.context), seed)
    prompt = min(prompt, model.context)
    new = min(config.grpo.max_new_tokens, model.context + 1 - prompt)
    length = min(-(-(prompt + new - 1) // LENGTH_STEP) * LENGTH_STEP, model.context)  # padded as in training
    grpo = replace(config.grpo, max_new_tokens=new)
    return Work(stage, model, weights, grpo.minibatch_size, length, seed, grpo, prompt)


def verdict_words(stage: str, verdict: Verdict) -> str:
    """The one line that a run says of a certificate that passes."""
    certificate = verdict.certificate
    words = f"preflight of {stage} on {certificate.runtime.device}: {len(certificate.findings)} arrays agree with "
    words += certificate.reference
    if verdict.changed:
        words += f" with {verdict.changed}: the stage trains so"
    if certificate.precision == "tf32":
        full = " (MLX_ENABLE_TF32=0 computes it in full)" if certificate.runtime.backend == "mlx" else ""
        words += f"; float32 is computed with about 11 bits here, as TF32 is{full}"
    return f"{words}; {verdict.seconds:.1f} s"


def _refusal(run: Run, stage: str, verdict: Verdict) -> str:
    """Why a stage does not begin, and what to do."""
    runtime = verdict.certificate.runtime
    others = [] if runtime.device == "cpu" else ["--run.device cpu"]
    others += ["--run.dtype float32"] if runtime.dtype != "float32" else []
    where = f"--resume {shlex.quote(str(run.folder))} " if run.stages else ""
    remedies = " or ".join(f"{where}{other}" for other in [*others, "--run.preflight off (trains all the same)"])
    saved = "; the stages before it are saved" if run.stages else ""
    return (
        f"{runtime.backend} on {runtime.device} computes {stage} wrong, in each of {1 + len(verdict.tried)} ways: "
        f"{verdict.because}; no step was taken{saved}: use {remedies}"
    )
