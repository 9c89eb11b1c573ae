"""The command line: layers of configuration, help texts, and one line for every mistake."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_models import state_of

from faisca import cli
from faisca.backend import Sampling
from faisca.cli import COMMANDS, command_function, main
from faisca.config import Config, DataConfig
from faisca.config.files import load_preset, read_sections, sections_of, write_config
from faisca.errors import FaiscaError, VerificationError
from faisca.runs.folder import hold_folder
from faisca.runs.state import Progress

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stages(monkeypatch):
    """A stand-in for `faisca.training.stages` that records what it is called with."""
    calls = SimpleNamespace(run=None, resume=None)

    def run(config, folder, start_from=None):
        calls.run = (config, folder, start_from)
        return {}

    def resume(folder, config):
        calls.resume = (folder, config)
        return {}

    def saved_state(folder):
        config = Config(**read_sections(folder / "config.toml"))
        return state_of(Progress("pretrain", 4), config, replace(config.model, vocabulary_size=512))

    stages = SimpleNamespace(run=run, resume=resume, saved_state=saved_state)
    monkeypatch.setitem(sys.modules, "faisca.training.stages", stages)
    monkeypatch.setattr("faisca.report.write.report_after_run", lambda folder: None)  # nothing has been run
    return calls


def configured(stages, *argv: str) -> Config:
    assert main(["run", *argv]) == 0
    return stages.run[0]


def complaint(capsys, *argv: str, status: int = 2) -> str:
    assert main(list(argv)) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("faisca: ") and printed.err.count("\n") == 1 and printed.err.endswith("\n")
    assert not set(printed.err) & set("│╭╰─\x1b")
    return printed.err[len("faisca: ") : -1]


def faisca(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "faisca", *argv]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)


# --- layers -------------------------------------------------------------------------------------


def test_without_options_it_is_spark(stages):
    assert configured(stages) == Config()
    assert stages.run[1:] == (Path("runs/spark"), None)


def test_layers_preset_then_file_then_options(stages):
    Path("mine.toml").write_text("[pretrain]\nepochs = 7\nbatch_size = 4\n[model]\ndropout = 0.5\n")
    config = configured(stages, "--pretrain.batch-size", "6", "--config", "mine.toml", "--preset", "tiny")
    assert config.preset == "tiny" and config.model.dim == 32
    assert (config.pretrain.epochs, config.model.dropout) == (7, 0.5)
    assert config.pretrain.batch_size == 6
    assert stages.run[1] == Path("runs/tiny")


def test_a_configuration_that_was_written_repeats_the_run(stages):
    config = configured(stages, "--preset", "apple", "--seed", "7", "--grpo.prompts", "Alerta ", "")
    write_config(config, Path("config.toml"))
    assert configured(stages, "--config", "config.toml") == config
    assert configured(stages, "--config", "config.toml", "--seed", "8").run.seed == 8


def test_an_option_mends_what_a_file_leaves_impossible(stages):
    Path("wide.toml").write_text("[data]\nwindow = 128\n")
    assert configured(stages, "--config", "wide.toml", "--model.context", "128").data.window == 128


def test_short_options(stages):
    config = configured(
        stages,
        *(
            "--backend",
            "mlx",
            "--device",
            "cpu",
            "--data",
            "titles.csv",
            "--seed=5",
            "--stages",
            "pretrain,sft",
        ),
    )
    assert (config.run.backend, config.run.device, config.run.seed) == ("mlx", "cpu", 5)
    assert (config.data.source, config.run.stages) == ("titles.csv", ("pretrain", "sft"))
    long = configured(
        stages,
        *("--run.backend", "mlx", "--run.device", "cpu", "--data.source", "titles.csv", "--run.seed", "5"),
        *("--run.stages", "pretrain", "sft"),
    )
    assert long == config


def test_spellings_of_section_options(stages):
    config = configured(
        stages,
        *(
            "--pretrain.learning_rate=5e-4",
            "--model.tie-embeddings",
            "--grpo.prompts",
            "Alerta ",
            "",
            "O Porto",
        ),
        *("--run.no-gradient-checkpointing", "--sample.prompt", "None"),
    )
    assert config.pretrain.learning_rate == 5e-4
    assert config.model.tie_embeddings and not config.run.gradient_checkpointing
    assert config.grpo.prompts == ("Alerta ", "", "O Porto")
    assert config.sample.prompt == "None"


@pytest.mark.parametrize("stage", ["pretrain", "sft", "grpo"])
def test_a_stage_command_runs_its_stage(stage, stages):
    Path("runs/base").mkdir(parents=True)
    write_config(load_preset("tiny"), Path("runs/base/config.toml"))
    assert main([stage, "--from", "runs/base", "--out", "here", "--preset", "tiny"]) == 0
    config, folder, start_from = stages.run
    assert config.run.stages == (stage,)
    assert (folder, start_from) == (Path("here"), Path("runs/base"))


def test_resume_takes_the_configuration_of_the_run(stages):
    Path("runs/mine/checkpoints").mkdir(parents=True)
    write_config(load_preset("tiny"), Path("runs/mine/config.toml"))
    assert main(["run", "--resume", "runs/mine", "--backend", "mlx"]) == 0
    folder, config = stages.resume
    assert stages.run is None and folder == Path("runs/mine")
    assert config.run.backend == "mlx" and config.preset == "tiny" and config.model.dim == 32


def test_a_run_folder_may_exist_when_it_is_empty(stages):
    Path("empty").mkdir()
    configured(stages, "--out", "empty")
    assert stages.run[1] == Path("empty")


# --- help ---------------------------------------------------------------------------------------


def test_help_lists_every_command_with_an_example(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, line) in COMMANDS.items():
        assert f"\n  {name} " in text and line in text
    assert "faisca run --preset" in text and "faisca generate" in text
    assert max(map(len, text.splitlines())) <= 80
    assert main([]) == 0 and capsys.readouterr().out == text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_teaches(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count(f"  faisca {name} ") >= 2 and "examples:" in text
    assert f"usage: faisca {name}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_help_of_run_has_every_section_and_the_values_in_force(capsys):
    assert main(["run", "--help", "--preset", "tiny", "--seed", "4"]) == 0
    text = capsys.readouterr().out
    for section in ("model", "tokenizer", "data", "pretrain", "sft", "grpo", "sample", "run"):
        assert f" {section} options " in text and f"--{section}." in text
    for option in (
        "preset",
        "config",
        "out",
        "resume",
        "from",
        "backend",
        "device",
        "data",
        "seed",
        "stages",
    ):
        assert f" --{option} " in text
    assert "(default: tiny)" in text and "transformer blocks (default: 2)" in text
    assert all(f"  {preset} " in text for preset in ("apple", "faisca", "modern", "moe", "spark", "tiny"))


def test_every_command_of_the_table_is_a_function():
    for name in COMMANDS:
        assert command_function(name).__name__ == name


def test_help_starts_without_heavy_imports():
    code = (
        "import sys, faisca.cli\n"
        "status = faisca.cli.main(['--help'])\n"
        "print(sorted({'torch', 'mlx', 'numpy', 'pyarrow', 'tyro', 'rich'} & set(sys.modules)), status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_options_are_parsed_without_heavy_imports():
    code = (
        "import sys, faisca.cli\n"
        "faisca.cli.main(['run', '--help'])\n"
        "print(sorted({'torch', 'mlx', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_and_the_help_of_a_command(capsys):
    for word in ("--version", "-V"):
        assert main([word]) == 0
        assert re.fullmatch(
            r"faisca \d+\.\d+\.\d+ \(Python \d\S+, (no )?torch.*, (no )?mlx.*\)\n", capsys.readouterr().out
        )
    for one, other in ((["help"], ["--help"]), (["help", "runs"], ["runs", "--help"])):
        assert main(one) == main(other) == 0
        text = capsys.readouterr().out
        assert text[: len(text) // 2] == text[len(text) // 2 :] and "usage: faisca" in text


# --- mistakes -----------------------------------------------------------------------------------

HOSTILE = {
    "foo": "command 'foo' is unknown: choose among run, pretrain, ",
    "rnu": "command 'rnu' is unknown: did you mean run?",
    "train": "command 'train' is unknown: did you mean run (all stages) or pretrain (the first)?",
    "Finetune": "did you mean sft?",
    "help foo": "command 'foo' is unknown",
    "--preset tiny": "--preset stands where a command belongs",
    "run --preset tny": "preset 'tny' is unknown: did you mean tiny?",
    "run --presett tiny": "option --presett is unknown: did you mean --preset?",
    "run --epochs 3": "did you mean --pretrain.epochs, --sft.epochs or --grpo.epochs?",
    "run --epocs 3": "did you mean --pretrain.epochs, --sft.epochs or --grpo.epochs?",
    "run --batch-size 3": "did you mean --pretrain.batch-size or --sft.batch-size?",
    "run --lr 3": "did you mean --pretrain.learning-rate, --sft.learning-rate or --grpo.learning-rate?",
    "run --pretrain.lr 3": "did you mean --pretrain.learning-rate?",
    "run --n_layer 3": "did you mean --model.num-layers?",
    "sft --lr 3": "unknown: did you mean --sft.learning-rate?",
    "run --wandb": "option --wandb is unknown: faisca run --help lists what there is",
    "run --foo": "option --foo is unknown: faisca run --help lists what there is",
    "run --version": "option --version is unknown: faisca run --help lists what there is",
    "run --pretrain.bath_size=3": "option --pretrain.bath-size is unknown: did you mean --pretrain.batch-size?",
    "run --learning-rate 3": "did you mean --pretrain.learning-rate, --sft.learning-rate or --grpo.learning-rate?",
    "run --qqqqqqqq": "option --qqqqqqqq is unknown: faisca run --help lists",
    "run extra": "argument 'extra' is one too many",
    "run --grpo.mask-truncated True": "argument 'True' is one too many",
    "run --model.dim x": "--model.dim 'x' is not a whole number",
    "run --model.dim 1e3": "--model.dim '1e3' is not a whole number",
    "run --model.dim": "--model.dim needs a value",
    "run --model.dim 0": "model.dim 0 is out of range",
    "run --model.dim -3": "model.dim -3 is out of range",
    "run --model.dim 130 --model.num-heads 4": "model.dim 130 is not divisible by model.num_heads 4",
    "run --data.window 512": "larger than model.context 64: use --data.window 64 ",
    "run --data.stride 0": "data.stride 0 is out of range",
    "run --tokenizer.vocabulary-size 100": "use at least 257",
    "run --pretrain.learning-rate abc": "--pretrain.learning-rate 'abc' is not a number",
    "run --pretrain.learning-rate nan": "pretrain.learning_rate nan is not a finite number",
    "run --run.backend jax": "--run.backend 'jax' is unknown: choose 'auto', 'torch', 'mlx'",
    "run --device gpu0": "--device 'gpu0' is unknown: choose 'auto', ",
    "run --seed -1": "run.seed -1 is out of range",
    "run --seed 99999999999999999999": "is out of range",
    "run --seed=": "--seed '' is not a whole number",
    "run --data=": "data.source is empty",
    "run --stages sft,pretrain": "run.stages sft,pretrain has an unknown name or another order",
    "run --stages pretrain,rlhf": "run.stages pretrain,rlhf has an unknown name",
    "run --stages=": "run.stages (none)",
    "run --grpo.prompts --seed 3": "grpo.prompts is empty",
    "run --config": "--config needs a value",
    "run --config nowhere.toml": "cannot read nowhere.toml (No such file or directory)",
    "run --config .": "cannot read . (Is a directory)",
    "run --out file": "--out file is a file: name a new folder",
    "run --out full": "full is not empty: name another folder with --out, or empty it",
    "run --out begun": "begun is not empty: name another folder with --out, or continue its run with --resume begun",
    "run --resume full": "--resume full is no run folder: it has no checkpoints",
    "run --resume nowhere": "--resume nowhere is no run folder: it has no checkpoints, so start it anew; nearby: begun",
    "inspect nowhere": "nowhere is no checkpoint: name a run folder, or one of its checkpoints/STAGE-STEP folders;",
    "run --resume full --preset tiny": "--preset does not go with --resume",
    "run --resume full --from file": "--from does not go with --resume",
    "sft --stages pretrain": "faisca sft cannot run stages pretrain: use faisca run",
    "run \udcff": "is not valid UTF-8",
    "generate": "CHECKPOINT is missing",
    "generate a b": "argument 'b' is one too many",
    "generate a -n x": "'x' is not a whole number",
    "generate --promt Olá runs/x": "option --promt is unknown: did you mean --prompt?",
    "generate --promt Olá": "option --promt is unknown: did you mean --prompt?",
    "generate a -k 3": "option -k is unknown",
    "generate a --temp 3": "did you mean --temperature?",
    "generate a --prompt b --prompts file": "--prompt does not go with --prompts",
    "generate a --prompts nowhere": "--prompts nowhere cannot be read (",
    "generate a --prompts full": "--prompts full cannot be read (",
    "generate a --prompts file": "--prompts file has no prompt: write one a line",
    "evaluate full": "--data is missing",
}


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: line.encode("ascii", "replace").decode())
def test_a_mistake_is_answered_in_one_line(line, stages, capsys):
    Path("file").touch()
    Path("full").mkdir()
    Path("full/something").touch()
    Path("begun/checkpoints/pretrain-000000").mkdir(parents=True)
    assert HOSTILE[line] in complaint(capsys, *line.split(" "))
    assert stages.run is None and stages.resume is None


def test_a_mistake_is_one_line_of_the_program_too():
    done = faisca("run", "--pretrain.epocs", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("faisca: option --pretrain.epocs is unknown: did you mean --pretrain.epochs?")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_mistake_reads_the_same_without_unicode_and_in_narrow_windows(encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("COLUMNS", "40")
    assert faisca("run", "--run.backend", "jax").stderr == (
        "faisca: --run.backend 'jax' is unknown: choose 'auto', 'torch', 'mlx' (faisca run --help explains it)\n"
    )


def failing(error: BaseException):
    def command(argv: list[str]) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (VerificationError("rung 3 failed\nbadly"), 1, "rung 3 failed badly"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["verification", "interrupt"],
)
def test_exit_statuses(error, status, said, monkeypatch, capsys):
    monkeypatch.setattr(cli, "command_function", lambda name: failing(error))
    assert complaint(capsys, "run", status=status) == said


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "command_function", lambda name: failing(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        main(["run"])


def test_a_reader_that_leaves_is_no_error():
    command = f"'{sys.executable}' -m faisca run --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] in ("0", "141")  # 0: all of it fitted into the pipe first


# --- generate and evaluate ----------------------------------------------------------------------


class FakeModel:
    config = load_preset("tiny")

    def __init__(self) -> None:
        self.asked: dict[str, object] = {}

    checkpoint = SimpleNamespace(folder=Path("runs/x/checkpoints/sft-000001"))
    setup = SimpleNamespace(runtime=SimpleNamespace(backend="torch", device="cpu"))

    def stream(self, prompt: str, n: int, **options: object) -> Iterator[str]:
        self.asked = {"prompt": prompt, "n": n, **options}
        return iter([f"{prompt} {i}" for i in range(n)])


def test_generate_prints_a_headline_a_line(monkeypatch, capsys):
    model, loads = FakeModel(), []

    def load(path, backend, device, weights):
        loads.append((path, backend, device, weights))
        return model

    monkeypatch.setitem(sys.modules, "faisca.loaded_model", SimpleNamespace(load=load))
    assert main(["generate", "runs/x", "--prompt", "Olá", "-n", "2", "--top-k", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "Olá 0\nOlá 1\n"
    assert loads == [(Path("runs/x"), "auto", "cpu", "float32")]
    left_out = {"temperature": None, "top_p": None, "max_new_tokens": None}
    assert model.asked == {"prompt": "Olá", "n": 2, "seed": 0, "top_k": 3, **left_out}
    assert main(["generate", "runs/x"]) == 0
    assert model.asked["prompt"] == "Presidente" and model.asked["n"] == 5
    assert main(["generate", "runs/x", "--prompt", ""]) == 0
    assert model.asked["prompt"] == ""
    assert main(["generate", "runs/x", "-p", "Porto\x1b[2J", "-n", "1"]) == 0
    assert capsys.readouterr().out.endswith("\nPorto [2J 0\n")  # nothing that steers a terminal


def test_generate_takes_prompts_from_a_file_and_from_standard_input(monkeypatch, capsys):
    monkeypatch.setitem(
        sys.modules, "faisca.loaded_model", SimpleNamespace(load=lambda path, backend, device, weights: FakeModel())
    )
    content = "\ufeffGoverno\r\n\r\nO Porto \u2028x\nGoverno".encode()
    Path("prompts.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    for source in ("prompts.txt", "-"):
        assert main(["generate", "runs/x", "--prompts", source, "-n", "2"]) == 0
        lines = [f"{prompt} {i}" for prompt in ("Governo", "O Porto  x", "Governo") for i in range(2)]
        assert capsys.readouterr().out == "\n".join(lines) + "\n"


def test_generate_as_json_says_what_repeats_it(monkeypatch, capsys):
    monkeypatch.setitem(
        sys.modules, "faisca.loaded_model", SimpleNamespace(load=lambda path, backend, device, weights: FakeModel())
    )
    Path("prompts.txt").write_text("Olá\nPorto\n")

    def sampling(self, **options):
        return Sampling(options["temperature"], 3, 1.0, 9)

    argv = ["--prompts", "prompts.txt", "-n", "1", "--seed", "7", "--temperature", "0.25", "--json"]
    monkeypatch.setattr(FakeModel, "sampling", sampling, raising=False)
    assert main(["generate", "runs/x", *argv]) == 0
    assert json.loads(capsys.readouterr().out) == {
        **{"checkpoint": "runs/x/checkpoints/sft-000001", "backend": "torch", "device": "cpu", "seed": 7},
        "settings": {"temperature": 0.25, "top_k": 3, "top_p": 1.0, "max_new_tokens": 9},
        "generated": [{"prompt": "Olá", "texts": ["Olá 0"]}, {"prompt": "Porto", "texts": ["Porto 0"]}],
    }


@pytest.mark.parametrize("folder", ["/proc/x", "x" * 300, "file/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_is_one_line(folder, capsys):
    Path("file").touch()
    if not Path("/proc").is_dir() and folder == "/proc/x":
        pytest.skip("no /proc here")
    with pytest.raises(FaiscaError, match=r"cannot be written \(.*\): choose another --out"), hold_folder(Path(folder)):
        raise AssertionError("it is there")
    for argv in (["inspect", folder], ["runs", folder], ["generate", folder], ["run", "--resume", folder]):
        assert folder in complaint(capsys, *argv)
    assert folder in complaint(capsys, "port", folder, "target", "--to", "hf")


def test_a_folder_is_free_again_after_a_run(tmp_path):
    for _ in range(2):
        with hold_folder(tmp_path), pytest.raises(FaiscaError, match="in use"), hold_folder(tmp_path):
            pass


def test_evaluate_prints_a_table_or_json(monkeypatch, capsys):
    config = load_preset("tiny")
    measured = {"validation_loss": 3.961234, "portugal_validation_loss": 3.5, "football_share": 0.25, "rows": 12345}

    def load(path, *, backend, device, weights):
        assert (path, backend, device, weights) == (Path("runs/x"), "mlx", "auto", "float32")
        return SimpleNamespace(evaluate=lambda source, **_: {**measured, source: 1}, config=config)

    monkeypatch.setitem(sys.modules, "faisca.loaded_model", SimpleNamespace(load=load))
    assert main(["evaluate", "runs/x", "--data", "titles.csv", "--backend", "mlx"]) == 0
    table = capsys.readouterr().out
    assert "│ validation loss " in table and "3.9612" in table and "12,345" in table
    assert ".pt validation loss" in table and "football share" in table
    assert main(["evaluate", "runs/x", "--data", "titles.csv", "--backend", "mlx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**measured, "titles.csv": 1}
    sft, grpo = replace(config.sft, url_contains=".es/"), replace(config.grpo, reward="keywords:[vento]")
    config = replace(config, sft=sft, grpo=grpo)
    measured["reward"] = 0.75
    assert main(["evaluate", "runs/x", "--data", "titles.csv", "--backend", "mlx"]) == 0
    table = capsys.readouterr().out
    assert ".es validation loss" in table and "reward (keywords:[vento])" in table and "0.7500" in table
    assert "football" not in table and "portugal" not in table and ".pt" not in table


# --- windows of other widths, prompts from a file, and what --from brings along -----------------


@pytest.mark.parametrize("name", ["run", "port"])
@pytest.mark.parametrize("width", [44, 60])
def test_help_breaks_lines_at_words(name, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([name, "--help"]) == 0
    narrow = capsys.readouterr().out.partition("usage:")[0]
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    wide = capsys.readouterr().out.partition("usage:")[0]
    assert max(map(len, narrow.splitlines())) <= width < max(map(len, wide.splitlines()))
    assert narrow.split() == wide.split()


def test_prompts_may_stand_in_a_file(stages, capsys):
    Path("prompts.txt").write_text("\ufeffO Porto\n\nAlerta \n", encoding="utf-8")
    assert configured(stages, "--grpo.prompts", "prompts.txt", "Governo").grpo.prompts == (
        "O Porto",
        "Alerta ",
        "Governo",
    )
    assert "grpo.prompts 'nowhere.txt' is no file" in complaint(capsys, "run", "--grpo.prompts", "nowhere.txt")
    Path("prompts.txt").write_bytes("ação".encode("latin-1"))
    assert "cannot be read" in complaint(capsys, "run", "--grpo.prompts", "prompts.txt")


@pytest.fixture
def began(tmp_path):
    """The folder of a run with options of its own."""
    (tmp_path / "base").mkdir()
    run = Config(
        **{**sections_of(load_preset("tiny")), "data": DataConfig(source="mine.csv", language="", window=16, stride=16)}
    )
    run = replace(
        run, run=replace(run.run, seed=7, device="cuda", stages=("pretrain",)), model=replace(run.model, context=64)
    )
    write_config(run, tmp_path / "base" / "config.toml")
    return run


def test_from_brings_the_runs_configuration_along(stages, began):
    assert main(["grpo", "--from", "base", "--out", "o", "--grpo.steps", "9", "--data.stride", "8"]) == 0
    config = stages.run[0]
    assert config.data == replace(began.data, stride=8) and config.model == began.model
    assert config.grpo == replace(began.grpo, steps=9) and config.sample == began.sample
    assert config.run == replace(Config().run, seed=7, stages=("grpo",))  # not where and how it ran


def test_a_preset_or_a_file_that_names_one_goes_before_what_from_brings(stages, began):
    assert main(["sft", "--from", "base", "--out", "o", "--preset", "spark"]) == 0
    assert stages.run[0].data == Config().data
    Path("mine.toml").write_text("[sft]\nepochs = 5\n")
    assert main(["sft", "--from", "base", "--out", "o", "--config", "mine.toml"]) == 0
    assert stages.run[0].data == began.data and stages.run[0].sft.epochs == 5
    Path("mine.toml").write_text('preset = "spark"\n[sft]\nepochs = 5\n')
    assert main(["sft", "--from", "base", "--out", "o", "--config", "mine.toml"]) == 0
    assert stages.run[0].data == Config().data and stages.run[0].sft.epochs == 5
