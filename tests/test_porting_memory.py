"""Porting: the weights stream, so that a conversion takes little more memory than the larger of its two files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import safetensors
from small_families import family_folder
from small_ports import small_tokenizer, transformers

from faisca.porting.port import port

pytestmark = pytest.mark.xdist_group("families")

MEASURE = """
import json, sys
from pathlib import Path
import faisca.porting.port as porting
from faisca.system.memory import peak_resident_bytes, reset_peak
from faisca.training.generate import complete  # what a port imports later
import torch, tokenizers

source, target, format, dtype = sys.argv[1:]
assert reset_peak()
before = peak_resident_bytes()
porting.port(Path(source), Path(target), format, dtype=dtype, verify=False)
print(json.dumps(peak_resident_bytes() - before))
"""
SHARE = 1.3
"""of the larger of source and target, in memory at once"""
EXPECTED = 0.5
"""and what it should be: a few of the largest matrices"""
WAYS = [
    ("one file", "run", "faisca", "auto"),
    ("one file", "half", "hf", "bfloat16"),
    ("one file", "x.safetensors", "torch", "auto"),
    ("one file", "y.npz", "mlx", "float16"),
    ("shards", "run", "faisca", "auto"),
    ("pickle", "run", "faisca", "auto"),
    ("run", "out", "hf", "auto"),
    ("run", "out", "hf", "float16"),
    ("experts", "run", "faisca", "auto"),
    ("experts in stacks", "run", "faisca", "auto"),
    ("run of experts", "out", "hf", "auto"),
]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Models of 200 MB, by name: a Llama in every kind of file, a mixture of experts, and runs; each is made once."""
    folder, tokenizer = tmp_path_factory.mktemp("large"), small_tokenizer()

    @cache
    def made(name: str) -> Path:
        target = folder / name
        match name:
            case "run":
                port(made("one file"), target, "faisca", verify=False)
            case "run of experts":
                port(made("experts"), target, "faisca", verify=False)
            case "experts":
                family_folder(target, "mixtral", tokenizer, **sizes_of_experts())
            case "experts in stacks":
                stack(shutil.copytree(made("experts"), target))
            case _:
                family_folder(target, "llama", tokenizer, kind=name, shard="60MB", **large_sizes())
        assert name != "shards" or len(list(target.glob("*.safetensors"))) > 3
        return target

    return made


def stack(folder: Path) -> None:
    """As transformers 5 computes, and writes where it is told to."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()  # it is mapped
    model.save_pretrained(folder, save_original_format=False)
    names = safetensors.safe_open(folder / "model.safetensors", "np").keys()
    assert "model.layers.0.mlp.experts.gate_up_proj" in names and not [name for name in names if ".w1." in name]


def large_sizes() -> dict[str, int]:
    return {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}


def sizes_of_experts() -> dict[str, int]:
    return {
        **large_sizes(),
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_local_experts": 8,
    }


def size_of(path: Path) -> int:
    """Bytes of weights in a file or in all of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in (".safetensors", ".bin")]
    return sum(file.stat().st_size for file in files)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process reset its peak")
@pytest.mark.parametrize(("source", "target", "format", "dtype"), WAYS)
def test_a_conversion_takes_little_more_memory_than_the_larger_file(large, tmp_path, source, target, format, dtype):
    command = [sys.executable, "-c", MEASURE, str(large(source)), str(tmp_path / target), format, dtype]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    larger = max(size_of(large(source)), size_of(tmp_path / target))
    grown = json.loads(done.stdout.splitlines()[-1])
    print(f"{source} to {target}: {grown / 2**20:.0f} MiB, {grown / larger:.2f} of {larger / 2**20:.0f} MiB")
    assert larger > 180e6 and grown < SHARE * larger
    assert source == "pickle" or grown < EXPECTED * larger  # a pickle is mapped: its pages count as resident
