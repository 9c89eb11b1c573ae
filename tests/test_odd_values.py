"""Values at the edge: temperatures near 0, rows with nothing to predict, numbers that JSON or a model cannot have."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from small_models import END, SMALL, open_twin, small_model

import faisca
from faisca import cli
from faisca.backend import Sampling
from faisca.bench.machine import describe_machine
from faisca.config import COLDEST, Config, GRPOConfig
from faisca.errors import FaiscaError
from faisca.parity import command as parity_command
from faisca.parity.command import RungResult
from faisca.porting.port import port, read_source
from faisca.runs.manifest import write_files

pytestmark = pytest.mark.xdist_group("odd values")
WHOLE = np.array([[3, 4, 5, 6]])


@pytest.fixture(scope="module")
def model(twin):
    return small_model(twin)


# --- temperatures -------------------------------------------------------------------------------


def tokens(twin, model, temperature: float, **more: float) -> list[list[int]]:
    sampling = Sampling(temperature, int(more.get("top_k", 0)), more.get("top_p", 1.0), 6)
    numbers = np.linspace(0, 0.99, 18, dtype=np.float32).reshape(3, 6)
    found = twin.generate(
        model=model,
        prompts=[[END], [1], [2, 3]],
        uniforms=numbers,
        sampling=sampling,
        end_of_text=(END,),
        log_probs=None,
    )
    return [column.tolist() for column in found]


@pytest.mark.parametrize("temperature", [1e-300, 1e-39, 1e-10, math.nextafter(COLDEST, 0)])
@pytest.mark.parametrize("more", [{}, {"top_k": 5}, {"top_p": 0.5}])
def test_a_temperature_near_0_takes_the_likeliest(twin, model, temperature, more):
    greedy = tokens(twin, model, 0.0)
    assert tokens(twin, model, temperature, **more) == greedy
    assert tokens(twin, model, COLDEST, **more) == greedy != tokens(twin, model, 2.0)


@pytest.mark.parametrize("temperature", [-1.0, -1e-39, math.nan, math.inf])
def test_a_temperature_that_cannot_be_is_refused(temperature):
    with pytest.raises(FaiscaError, match=r"temperature .* is out of range: use a finite number, at least 0"):
        Sampling(temperature, 0, 1.0, 4)


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, 1e-39, math.nan, math.inf])
def test_log_probabilities_need_a_temperature(twin, model, temperature):
    for ids in (WHOLE, WHOLE[:, :1], WHOLE[:0]):
        with pytest.raises(FaiscaError, match="has no log-probabilities: use a finite one, at least 1e-06"):
            twin.token_log_probs(model=model, tokens=ids, temperature=temperature, places=None)
    assert np.isfinite(twin.token_log_probs(model=model, tokens=WHOLE, temperature=COLDEST, places=None)).all()


def test_grpo_refuses_temperatures_that_it_cannot_learn_from():
    with pytest.raises(FaiscaError, match=r"grpo\.temperature 1e-39 is out of range: use a number at least 1e-06"):
        Config(grpo=GRPOConfig(temperature=1e-39))


# --- nothing to predict -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3, 1), (0, 0), (0, 1)])
def test_batches_with_nothing_in_them(twin, model, shape):
    ids = np.zeros(shape, np.int64)
    found = twin.token_log_probs(model=model, tokens=ids, temperature=1.0, places=None)
    assert found.shape == (shape[0], max(0, shape[1] - 1)) and found.dtype == np.float32
    found = twin.logits(model=model, tokens=ids)
    assert found.shape == (*shape, SMALL.vocabulary_size) and found.dtype == np.float32
    nothing = twin.evaluate(model=model, inputs=ids, targets=np.full(shape, -1))
    assert (type(nothing), nothing) == (float, 0.0)


def test_no_place_is_no_log_probability(twin, model):
    none = np.zeros(0, np.int32)
    found = twin.token_log_probs(model=model, tokens=WHOLE, temperature=1.0, places=none)
    assert found.tolist() == [[0.0, 0.0, 0.0]] and found.dtype == np.float32


@pytest.mark.parametrize("prompts", [[], [[]], [[], [1]]])
def test_no_prompt_is_an_error(twin, model, prompts):
    numbers = np.zeros((len(prompts), 4), np.float32)
    with pytest.raises(ValueError, match="give each row a prompt of at least one token"):
        next(
            twin.generate(
                model=model,
                prompts=prompts,
                uniforms=numbers,
                sampling=Sampling(1.0, 0, 1.0, 4),
                end_of_text=(END,),
                log_probs=None,
            )
        )


# --- numbers that JSON does not have --------------------------------------------------------------


def strict(text: str) -> dict:
    """The object in a text of JSON, which has no NaN and no Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "faisca-cpu-sampling.json"


def test_parity_says_in_json_what_is_not_finite(monkeypatch, capsys):
    rows = [
        RungResult(2, "logits", "mlx cpu", math.inf, 1e-6, "nan instead of 1"),
        RungResult(3, "loss", "mlx cpu", math.nan, 1e-6, ""),
    ]
    monkeypatch.setattr(parity_command, "find_sides", dict)
    monkeypatch.setattr(parity_command, "compare_sides", lambda sides, case: rows)
    monkeypatch.setattr(
        parity_command, "_report", lambda rows, runtimes, case: {"rungs": list(map(dataclasses.asdict, rows))}
    )
    assert cli.main(["parity", "--json"]) == 1
    infinite, nothing = strict(capsys.readouterr().out)["rungs"]
    assert (infinite["difference"], infinite["difference_is"]) == (None, "infinite")
    assert (nothing["difference"], nothing["difference_is"]) == (None, "not a number")


@pytest.mark.parametrize(("median", "word"), [(math.nan, "not a number"), (math.inf, "infinite"), (None, None)])
def test_bench_compare_takes_files_with_numbers_that_are_none(median, word, tmp_path, capsys):
    measured = {"pretrain": {"median": median, "low": 1.0, "high": 2.0, "rounds": [1.0]}, "peak": {"median": 2.0}}
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    chosen = {"gpu": "[red]", "device": "cuda", "dtype": "float32"}
    results["machine"] = describe_machine()
    results["subjects"] = {name: {"computed_with": chosen, "measured": measured} for name in ("torch", "mlx")}
    file = tmp_path / "[red]a.json"
    file.write_text(json.dumps(results))  # Python writes NaN, and reads it
    assert cli.main(["bench", "compare", str(file), "--json"]) == 0
    found = strict(capsys.readouterr().out)["[red]a torch"]["pretrain"]
    assert (found["median"], found.get("median_is")) == (median if word is None else None, word)
    for more in ([], ["--markdown"]):
        assert cli.main(["bench", "compare", str(file), *more]) == 0
        shown = capsys.readouterr().out
        assert "[red]" in shown and "pre-training step" not in shown and "nan" not in shown


# --- weights that are not finite ------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one step."""
    open_twin("torch")
    target = tmp_path_factory.mktemp("runs") / "whole"
    faisca.train(
        target, "tiny", pretrain={"max_steps": 1}, run={"stages": ["pretrain"], "backend": "torch", "device": "cpu"}
    )
    return target


@pytest.fixture(scope="module")
def broken(folder, tmp_path_factory):
    """A copy of it with a NaN in its weights, and with checksums that are right."""
    copy = tmp_path_factory.mktemp("runs") / "broken"
    shutil.copytree(folder, copy)
    checkpoint = copy / (copy / "latest").read_text().strip()
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "manifest.json"}
    weights = {name: array.copy() for name, array in safetensors.numpy.load(files["model.safetensors"]).items()}
    weights["positional_embedding.weight"][3, 1] = math.nan
    shutil.rmtree(checkpoint)
    write_files(checkpoint, files | {"model.safetensors": safetensors.numpy.save(weights)})
    return checkpoint


@pytest.mark.parametrize(
    "command",
    ["generate {broken}", "evaluate {broken} --data sample", "port {broken} {new} --to hf", "parity {broken}"],
)
def test_weights_that_are_not_finite_are_named(command, broken, tmp_path, capsys):
    argv = [word.format(broken=broken, new=tmp_path / "new") for word in command.split()]
    assert cli.main(argv) == 2
    told = capsys.readouterr().err
    file = broken / "model.safetensors"
    assert told.startswith(f"faisca: {file}: positional_embedding.weight has 1 numbers that are not finite")
    assert told.count("\n") == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("format", ["hf", "torch", "mlx"])
def test_a_ported_file_with_nan_is_named_too(format, folder, tmp_path, capsys):
    made = tmp_path / {"hf": "hf", "torch": "a.safetensors", "mlx": "a.npz"}[format]
    port(folder, made, format, verify=False)
    file = made / "model.safetensors" if format == "hf" else made
    arrays = dict(np.load(file)) if format == "mlx" else safetensors.numpy.load_file(file)
    name = next(name for name in arrays if "wpe" in name or "positional" in name)
    arrays[name] = np.full_like(arrays[name], -np.inf)
    np.savez(file, **arrays) if format == "mlx" else safetensors.numpy.save_file(arrays, file)
    assert cli.main(["port", str(made), str(tmp_path / "run"), "--to", "faisca"]) == 2
    told = capsys.readouterr().err
    assert f"{file}: {name} has {arrays[name].size:,} numbers that are not finite" in told and told.count("\n") == 1


def test_bfloat16_as_mlx_saves_it_is_read(folder, tmp_path):
    mx = pytest.importorskip("mlx.core")
    port(folder, tmp_path / "a.npz", "mlx", verify=False)
    arrays = dict(np.load(tmp_path / "a.npz"))
    mx.savez(
        str(tmp_path / "half.npz"), **{name: mx.array(array).astype(mx.bfloat16) for name, array in arrays.items()}
    )
    (tmp_path / "half.npz.json").write_bytes((tmp_path / "a.npz.json").read_bytes())
    with np.load(tmp_path / "half.npz") as file:
        assert {array.dtype.str for array in file.values()} == {"|V2"}  # what NumPy makes of it
    read = read_source(tmp_path / "half.npz").parameters
    for name, array in arrays.items():
        expected = np.array(mx.array(array).astype(mx.bfloat16).astype(mx.float32))
        assert read[name].dtype == np.float32 and np.array_equal(read[name], expected), name
    assert cli.main(["port", str(tmp_path / "half.npz"), str(tmp_path / "run"), "--to", "faisca"]) == 0
    assert faisca.load(tmp_path / "run", backend="torch").generate("O", temperature=1e-39)


def test_an_npz_of_other_bytes_is_refused(folder, tmp_path):
    port(folder, tmp_path / "a.npz", "mlx", verify=False)
    arrays = dict(np.load(tmp_path / "a.npz"))
    arrays["final_layer_norm.bias"] = arrays["final_layer_norm.bias"].view("V4")
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FaiscaError, match=r"final_layer_norm\.bias is \|V4: weights are float32, float16 or bfloat16"):
        read_source(tmp_path / "a.npz")
