"""Every port with one framework alone: packages are hidden in a process of its own, as if never installed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from small_ports import edit_json, gpt2_folder, small_run, small_tokenizer, torch, without_progress

from faisca.porting.port import port
from faisca.porting.readers import LIBRARIES

pytest.importorskip("mlx_lm", reason="mlx_lm is missing")
pytestmark = pytest.mark.xdist_group("porting alone")

HIDE = """
import contextlib, io, json, sys
from importlib.machinery import PathFinder

hidden, commands = json.loads(sys.argv[1])

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from faisca.cli import main

answers = []
for argv in commands:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(argv)
    answers.append([status, out.getvalue(), errors.getvalue()])
assert not set(hidden) & set(sys.modules)
print(json.dumps(answers))
"""
"""a program that runs commands where some packages are not to be found"""

INSTALLED = {
    "mlx": ["torch"],
    "torch": ["mlx", "mlx_lm", "transformers"],  # a plain install on Linux
    "torch and transformers": ["mlx", "mlx_lm"],
    "nothing": ["torch", "mlx", "mlx_lm", "transformers"],
}
"""what is there, and what is hidden for it"""
TARGETS = {"faisca": "run", "hf": "folder", "torch": "t.safetensors", "mlx": "m.npz"}
WAYS = [
    *[("run", format) for format in TARGETS],
    *[("tied", format) for format in TARGETS],
    *[
        ("untied", "faisca"),
        ("t.safetensors", "faisca"),
        ("t.safetensors", "mlx"),
        ("m.npz", "faisca"),
        ("m.npz", "hf"),
    ],
]
"""sources and target formats: from and to everything"""
READERS = {
    "mlx": {"faisca": "faisca_mlx", "hf": "mlx_lm", "torch": "faisca_mlx", "mlx": "faisca_mlx"},
    "torch": dict.fromkeys(TARGETS, "faisca_torch"),
    "torch and transformers": dict.fromkeys(TARGETS, "faisca_torch") | {"hf": "transformers"},
}
"""who reads each format of target"""

MISSING = {
    "mlx": {"torch", "transformers"},
    "torch": {"mlx", "mlx_lm", "transformers"},
    "torch and transformers": {"mlx", "mlx_lm"},
}
"""libraries that cannot check"""


def answers(hidden: list[str], *commands: list[object]) -> list[list[Any]]:
    """Status, output and errors of each command."""
    texts = [[str(word) for word in command] for command in commands]
    command = [sys.executable, "-c", HIDE, json.dumps([hidden, texts])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind: GPT-2 as transformers 5 saves it (tied tanh, untied exact), a run, weights files."""
    folder, tokenizer = tmp_path_factory.mktemp("alone"), small_tokenizer()
    gpt2_folder(folder / "tied", tokenizer)
    gpt2_folder(folder / "untied", tokenizer, tie_word_embeddings=False, activation_function="gelu")
    small_run(folder / "run", tokenizer)
    port(folder / "run", folder / "t.safetensors", "torch", verify=False)
    port(folder / "run", folder / "m.npz", "mlx", verify=False)
    assert "n_ctx" not in json.loads((folder / "tied" / "config.json").read_text())
    assert "transformer.wte.weight" in safetensors.numpy.load_file(folder / "tied" / "model.safetensors")
    return {name: folder / name for name in ("tied", "untied", "run", "t.safetensors", "m.npz")}


@pytest.mark.parametrize("installed", READERS)
def test_every_port_is_verified_with_one_framework(sources, tmp_path, installed):
    commands = [
        ["port", sources[source], tmp_path / source / TARGETS[format], "--to", format, "--json"]
        for source, format in WAYS
    ]
    judges = {"mlx": "mlx_lm", "torch": "faisca_torch", "torch and transformers": "transformers"}
    twin = f"faisca_{installed[:5].strip()}"
    for (source, format), (status, out, errors) in zip(WAYS, answers(INSTALLED[installed], *commands), strict=True):
        assert (status, without_progress(errors)) == (0, ""), (source, format)
        said = json.loads(out)
        (row,) = said["comparisons"]
        assert said["verified"] and row["library"] == READERS[installed][format], (source, format)
        assert said["answered_by"] == (judges[installed] if "tied" in source else twin)
        assert 0 <= row["largest_logit_difference"] < 1e-4 and row["equal_tokens"] == row["tokens"] > 0
        unasked = any("does not answer for the source" in note for note in said["notes"])
        assert unasked == ("tied" in source and installed != "torch and transformers")
        unchecked = {name for name in LIBRARIES[format] if any(f"with {name}: " in note for note in said["notes"])}
        assert unchecked == set(LIBRARIES[format]) & MISSING[installed]


def test_a_difference_is_seen_by_mlx_lm_alone(sources, tmp_path):
    """config.json of the source says another GELU than our reading of it: the judge is not us."""
    spoil = "from faisca.porting.layouts import gpt2\ngpt2.ACTIVATIONS.update(gelu='gelu_new', gelu_tanh='gelu')\n"
    words = [str(word) for word in ("port", sources["tied"], tmp_path / "run", "--to", "faisca")]
    code = HIDE.replace("answers = []", f"{spoil}answers = []")
    command = [sys.executable, "-c", code, json.dumps([["torch"], [words]])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    ((status, out, errors),) = json.loads(done.stdout.splitlines()[-1])
    assert status == 1 and "logits differ" in errors and out == "" and not (tmp_path / "run").exists()


def test_without_any_framework_the_way_out_is_named(sources, tmp_path):
    command = ["port", sources["run"], tmp_path / "hf", "--to", "hf"]
    refused, written = answers(INSTALLED["nothing"], command, [*command, "--no-verify"])
    assert refused[0] == 2 and "pip install" in refused[2] and "--no-verify" in refused[2]
    assert refused[2].count("\n") == 1
    assert written[0] == 0 and "NOT VERIFIED" in written[2] and "NOT verified" in written[1]


def test_a_pickle_needs_torch_and_says_so(tmp_path):
    torch.save({"token_embedding.weight": torch.zeros(4, 4)}, tmp_path / "model.pt")
    ((status, _, errors),) = answers(["torch"], ["port", tmp_path / "model.pt", tmp_path / "run", "--to", "faisca"])
    assert status == 2 and errors.startswith("faisca: torch is not installed") and errors.count("\n") == 1


def test_where_no_library_can_read_the_source_a_twin_answers(sources, tmp_path):
    """A tied folder that stores its head as well, as old ones do: mlx-lm refuses it."""
    folder = tmp_path / "old"
    folder.mkdir()
    for file in sources["tied"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    arrays["lm_head.weight"] = np.array(arrays["transformer.wte.weight"])
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", auto_map={"AutoConfig": "stranger--code.Config"})
    ((status, out, _),) = answers(["torch"], ["port", folder, tmp_path / "run", "--to", "faisca"])
    assert status == 0 and "verified: faisca_mlx answered for the source" in out
    (reason,) = (line for line in out.splitlines() if "mlx_lm does not answer" in line)
    assert "lm_head.weight" in reason
