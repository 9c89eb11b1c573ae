"""Every error says what to do: each piece of advice is provoked, then followed to the letter, and the command gets on.

Whole runs cost seconds, so a run that gets as far as its first step has got on.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from small_models import open_twin

from faisca import cli
from faisca.porting.port import port
from faisca.training import stages

pytestmark = pytest.mark.xdist_group("advice")

NEW = "run --preset tiny --device cpu --backend torch"
TITLES = [f"{who} abre a porta {i**7} da rua {i**9}" for who in ("Governo", "Porto") for i in range(3, 103)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """What users have lying about: runs, one of them not finished, exports, data with other columns."""
    open_twin("torch")
    place = tmp_path_factory.mktemp("shelf")
    steps = " --pretrain.max-steps 2 --sft.max-steps 1 --grpo.steps 1 --checkpoint-every 1"
    assert cli.main(shlex.split(f"{NEW}{steps} --out {place}/base")) == 0
    wild = "--pretrain.learning-rate 1e30 --pretrain.clip-norm 0 --run.max-bad-steps 1 --checkpoint-every 1"
    assert cli.main(shlex.split(f"{NEW} {wild} --out '{place}/a run'")) == 2
    port(place / "base", place / "hf", "hf", verify=False)
    port(place / "base", place / "some weights.safetensors", "torch", verify=False)
    (place / "lone").mkdir()
    shutil.copy(place / "some weights.safetensors", place / "lone")
    shutil.copytree(place / "hf", place / "bare")
    (place / "tokenizer.json").write_bytes((place / "bare" / "tokenizer.json").read_bytes())
    (place / "bare" / "tokenizer.json").unlink()
    rows = [f"{title},en,https://a.pt/{i}" for i, title in enumerate(TITLES)]
    (place / "head.csv").write_text("\n".join(["headline,tongue,address", *rows]))
    (place / "english.csv").write_text("\n".join(["title,language,requested_url", *rows]))
    (place / "no_url.csv").write_text("\n".join(["title,language", *(f"{title},pt" for title in TITLES)]))
    (place / "numbers.jsonl").write_text("\n".join(json.dumps({"title": i, "text": t}) for i, t in enumerate(TITLES)))
    (place / "plain.txt").write_text("\n".join(TITLES))
    (place / "good.toml").write_text('preset = "tiny"\n')
    (place / "reward.py").write_text("def score(texts):\n    return [0.0] * len(texts)\n")
    (place / "prompts.txt").write_text("Governo\n")
    (place / "full").mkdir()
    (place / "full" / "x").touch()
    (place / "file").touch()
    (place / "bench.json").write_text("{}")
    return place


@pytest.fixture
def here(shelf, tmp_path, monkeypatch) -> Path:
    """A copy of it to work in; a run ends where its first step would begin."""
    folder = shutil.copytree(shelf, tmp_path / "here")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(stages, "_run_stages", lambda run, *_: run.log.say("it gets on"))
    return folder


def tried(line: str, capsys) -> tuple[int, str]:
    """Exit status and standard error of a command line, as a shell reads it."""
    capsys.readouterr()
    return cli.main(shlex.split(line)), capsys.readouterr().err


TINY = f"{NEW} --stages pretrain --out new"
ADVICE = [
    # which command, which option
    ("rnu --preset tiny", "did you mean run?", NEW),
    ("--preset tiny", "write the command first, as in faisca run --preset", f"{NEW}"),
    ("resume base", "did you mean run --resume RUN?", "run --resume base"),
    ("eval base", "did you mean evaluate?", "evaluate base --data sample"),
    (
        f"{NEW} --epochs 1",
        "did you mean --pretrain.epochs, --sft.epochs or --grpo.epochs?",
        f"{NEW} --pretrain.epochs 1",
    ),
    (f"{NEW} --wandb", "faisca run --help lists what there is", "run --help"),
    (f"{NEW} extra", "faisca run --help shows what goes where", "run --help"),
    ("bench compare file --foo", "faisca bench compare --help lists", "bench compare --help"),
    ("run --model.dim x", "(faisca run --help explains it)", "run --help"),
    ("generate", "CHECKPOINT is missing", "generate base"),
    ("evaluate base", "--data is missing", "evaluate base --data sample"),
    ("sft --from base --stages pretrain", "use faisca run", f"{NEW} --from base --stages pretrain"),
    ("run --config good.toml --preset spark", "leave --preset out", "run --config good.toml"),
    ("run --config nowhere.toml", "name a TOML file", "run --config good.toml"),
    ("run --preset tny", "did you mean tiny?", "run --preset tiny"),
    ("run --device abacus", "choose 'auto', 'cpu', ", "run --preset tiny --device auto"),
    (f"{NEW} --device cuda", "choose among cpu, or auto", f"{NEW} --device cpu"),
    # values
    (f"{NEW} --model.num-heads 3", "try --model.num-heads 2", f"{NEW} --model.num-heads 2"),
    (f"{NEW} --tokenizer.vocabulary-size 9", "use at least 257", f"{NEW} --tokenizer.vocabulary-size 257"),
    (f"{NEW} --data.window 99", "use --data.window 32 --data.stride 32", f"{NEW} --data.window 32 --data.stride 32"),
    (
        f"{NEW} --data.window 99",
        "or for a new model at least --model.context 99",
        f"{NEW} --data.window 99 --model.context 99",
    ),
    (f"{NEW} --pretrain.micro-batch-size 3", "choose a divisor of 8", f"{NEW} --pretrain.micro-batch-size 4"),
    (f"{NEW} --grpo.group-size 1", "use at least 2", f"{NEW} --grpo.group-size 2 --grpo.minibatch-size 2"),
    (f"{NEW} --grpo.minibatch-size 3", "choose a divisor", f"{NEW} --grpo.minibatch-size 2"),
    (f"{NEW} --grpo.micro-batch-size 3", "choose a divisor of", f"{NEW} --grpo.micro-batch-size 1"),
    (
        f"{NEW} --grpo.baseline none",
        "add --grpo.scale-rewards none",
        f"{NEW} --grpo.baseline none --grpo.scale-rewards none",
    ),
    (
        f"{NEW} --grpo.objective gmpo --grpo.importance sequence",
        "use token, or clip for GSPO",
        f"{NEW} --grpo.objective clip --grpo.importance sequence",
    ),
    (f"{NEW} --grpo.delta 1", "choose a larger one", f"{NEW} --grpo.delta 1.5"),
    (f"{NEW} --grpo.delta 2 --grpo.objective sapo", "leave it out", f"{NEW} --grpo.objective sapo"),
    (f"{NEW} --grpo.temperature 1e-39", "use a number at least 1e-06", f"{NEW} --grpo.temperature 1e-06"),
    (f"{NEW} --stages sft,pretrain", "choose among pretrain,sft,grpo, each once", f"{NEW} --stages pretrain,sft,grpo"),
    (f"{NEW} --stages sft", "name a checkpoint with --from", f"{NEW} --stages sft --from base"),
    (f"{NEW} --pretrain.batch-size 9999", "use at most ", f"{NEW} --pretrain.batch-size 9"),
    (f"{NEW} --grpo.prompts new.txt", "name a text file, a prompt a line", f"{NEW} --grpo.prompts prompts.txt"),
    (
        f"{NEW} --grpo.reward footbal",
        "choose football, keywords:WORD,SOME PHRASE",
        f"{NEW} --grpo.reward keywords:WORD,WORD",
    ),
    (f"{NEW} --grpo.reward no.py:score", "name a Python file, as in", f"{NEW} --grpo.reward reward.py:score"),
    (f"{NEW} --grpo.reward reward.py:f", "it has score", f"{NEW} --grpo.reward reward.py:score"),
    (f"{NEW} --sample.prompt '{'palavra ' * 40}'", "shorten it", f"{NEW} --sample.prompt palavra"),
    # data, of a run and of an evaluation
    (f"{NEW} --data nowhere", "use sample, hub or", f"{NEW} --data sample"),
    (
        f"{TINY} --data english.csv",
        "--data.language among those that occur (en)",
        f"{TINY} --data english.csv --data.language en",
    ),
    (
        f"{NEW} --data no_url.csv",
        '--sft.url-contains "" takes all titles',
        f'{NEW} --data no_url.csv --sft.url-contains ""',
    ),
    (
        f"{NEW} --data plain.txt",
        '--sft.url-contains "" takes all titles',
        f'{NEW} --data plain.txt --sft.url-contains ""',
    ),
    (
        "evaluate base --data english.csv",
        "choose with --data.language among those that occur (en)",
        "evaluate base --data english.csv --data.language en",
    ),
    (
        "evaluate base --data head.csv",
        'give --data.title-column NAME, --data.language-column NAME (or --data.language ""',
        "evaluate base --data head.csv --data.title-column headline --data.language-column tongue --data.language en",
    ),
    (
        "evaluate base --data head.csv",
        '--data.language ""',
        'evaluate base --data head.csv --data.title-column headline --data.language ""',
    ),
    (
        "evaluate base --data numbers.jsonl --data.language ''",
        "or name another column with --data.title-column",
        "evaluate base --data numbers.jsonl --data.language '' --data.title-column text",
    ),
    (
        "evaluate base --data sample --pretrain.url-contains .nowhere/",
        '--pretrain.url-contains "" takes all titles',
        'evaluate base --data sample --pretrain.url-contains ""',
    ),
    (
        "evaluate base --data sample --data.languag pt",
        "did you mean --data.language?",
        "evaluate base --data sample --data.language pt",
    ),
    # folders
    (f"{NEW} --out file", "name a new folder", f"{NEW} --out folder"),
    (f"{NEW} --out full", "name another folder with --out", f"{NEW} --out folder"),
    (f"{NEW} --out base", "continue its run with --resume base", "run --resume base"),
    (f"{NEW} --out 'a run'", "continue its run with --resume 'a run'", "run --resume 'a run'"),
    (f"{NEW} --out file/x", "choose another --out", f"{NEW} --out folder"),
    ("run --resume bas", "so start it anew; nearby: ", "run --resume base"),
    ("run --resume base --preset tiny", "leave --preset out", "run --resume base"),
    ("run --resume base --seed 3", "has 1337", "run --resume base --seed 1337"),
    ("run --resume base --model.dim 64", "start a new run with --out", f"{NEW} --model.dim 64 --out folder"),
    (
        "run --resume 'a run' --stages sft",
        "leaves out pretrain, in which the run stopped: name it as well",
        "run --resume 'a run' --stages pretrain,sft",
    ),
    ("runs", "as in faisca runs .", "runs ."),
    ("inspect nowhere", "name a run folder", "inspect base"),
    ("generate nowhere", "nearby: ", "generate base"),
    ("generate base --prompt a --prompts prompts.txt", "leave one of them out", "generate base --prompts prompts.txt"),
    ("generate base --prompts file", "write one a line", "generate base --prompts prompts.txt"),
    # ports
    ("generate hf", "as in faisca port hf runs/hf --to faisca", "port hf runs/hf --to faisca"),
    (
        "generate 'some weights.safetensors'",
        "as in faisca port 'some weights.safetensors' 'runs/some weights' --to faisca",
        "port 'some weights.safetensors' 'runs/some weights' --to faisca",
    ),
    (
        "port base target --to mlx --no-verify",
        "end its name in .safetensors or .npz",
        "port base target.npz --to mlx --no-verify",
    ),
    ("port base hf --to hf --no-verify", "name another target", "port base other --to hf --no-verify"),
    ("port base file/x --to hf --no-verify", "name another target", "port base other --to hf --no-verify"),
    (
        "port bare other --to faisca --no-verify",
        "name the model's with --tokenizer FILE",
        "port bare other --to faisca --no-verify --tokenizer tokenizer.json",
    ),
    (
        "port hf other --to faisca --no-verify --tokenizer tokenizer.json",
        "leave it out",
        "port hf other --to faisca --no-verify",
    ),
    (
        "port base other --to hf --no-verify --tokenizer tokenizer.json",
        "leave it out",
        "port base other --to hf --no-verify",
    ),
    (
        "port 'some weights.safetensors' other --to hf --no-verify --num-heads 2",
        "so leave it out",
        "port 'some weights.safetensors' other --to hf --no-verify",
    ),
    (
        "port 'lone/some weights.safetensors' other --to hf --no-verify",
        "--tokenizer",
        "port 'lone/some weights.safetensors' other --to hf --no-verify --tokenizer tokenizer.json",
    ),
    (
        "port 'lone/some weights.safetensors' other --to hf --no-verify --num-heads 5 --tokenizer tokenizer.json",
        "give the number that it was trained with, as in --num-heads 1",
        "port 'lone/some weights.safetensors' other --to hf --no-verify --num-heads 1 --tokenizer tokenizer.json",
    ),
    ("port base other --to hf --num-heads 0", "use a number at least 1", "port base other --to hf --no-verify"),
]


@pytest.mark.parametrize(("wrong", "advice", "right"), ADVICE, ids=lambda text: None)
def test_who_follows_the_advice_gets_on(wrong, advice, right, here, capsys):
    status, told = tried(wrong, capsys)
    assert status == 2 and told.startswith("faisca: ") and told.count("\n") == 1, told
    assert advice in told
    for option in re.findall(r"--[a-z][\w.-]+\w", advice):  # what it names exists there, whatever is then typed
        command = "run" if option.startswith("--resume") else shlex.split(right)[0]
        assert cli.main([command, "--help"]) == 0
        assert option in capsys.readouterr().out, (command, option)
    status, told = tried(right, capsys)
    assert status == 0, told


def test_a_lower_rate_helps_where_steps_failed(here, capsys, monkeypatch):
    monkeypatch.undo()  # a whole run
    monkeypatch.chdir(here)
    wild = "--pretrain.learning-rate 1e30 --pretrain.clip-norm 0 --run.max-bad-steps 1 --pretrain.max-steps 3"
    status, told = tried(f"{NEW} {wild} --stages pretrain --out 'b run'", capsys)
    assert (
        status == 2 and "start a new run with a lower --pretrain.learning-rate, or try it with --resume 'b run'" in told
    )
    line = f"{NEW} --pretrain.learning-rate 1e-3 --pretrain.max-steps 3 --stages pretrain --out 'c run'"
    assert tried(line, capsys)[0] == 0


def test_the_place_of_a_port_is_free(here, capsys):
    Path("runs/hf").mkdir(parents=True)
    _, told = tried("generate hf", capsys)
    line = re.search(r"as in faisca (port .* --to faisca)", told)[1]
    assert line == "port hf runs/hf-2 --to faisca" and tried(line, capsys)[0] == 0


def test_another_folder_where_one_is_in_use(here, capsys):
    from faisca.runs.folder import hold_folder

    with hold_folder(Path("base")):
        status, told = tried("run --resume base", capsys)
        assert status == 2 and "begin a new run with another --out" in told
        assert tried(f"{NEW} --out other", capsys)[0] == 0
    assert tried("run --resume base", capsys)[0] == 0  # "wait for it"


def test_metrics_that_changed_can_be_moved_away(here, capsys):
    path = Path("base/metrics.jsonl")
    path.write_bytes(path.read_bytes()[:10])
    status, told = tried("run --resume base", capsys)
    assert status == 2 and "move it away to go on without it" in told
    path.rename("elsewhere")
    assert tried("run --resume base", capsys)[0] == 0


def test_an_earlier_checkpoint_is_taken_instead_of_a_damaged_one(here, capsys):
    newest, earlier = Path("base/checkpoints/grpo-000001"), Path("base/checkpoints/sft-000001")
    (newest / "state.json").write_text("{}")
    status, told = tried(f"generate {newest}", capsys)
    assert status == 1 and "use an earlier one of its run" in told
    assert tried(f"generate {earlier}", capsys)[0] == 0


@pytest.mark.parametrize(
    "out", ["/proc/x", "/proc/self/x", "file", "file/x/y", "x" * 300, "/dev/null/x", "loop", "dangling/x"]
)
def test_an_unusable_folder_is_one_line(out, here, capsys):
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("/proc/nowhere")
    for line in (f"{NEW} --out {out}", f"sft --from base --out {out}", f"port base {out}/m.npz --to mlx --no-verify"):
        status, told = tried(line, capsys)
        assert status == 2 and told.startswith("faisca: ") and told.count("\n") == 1, told
        assert out.split("/x")[0] in told and ("--out" in told or "another target" in told), told
