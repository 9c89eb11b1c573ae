"""The Hugging Face hub, through its own library: a model comes from there by its id, and an exported folder goes there.

`HF_TOKEN` or `hf auth login` says who asks, HF_ENDPOINT which hub, HF_HUB_OFFLINE that there is none.
"""

import re
from pathlib import Path

from faisca.errors import FaiscaError
from faisca.text import in_one_line

FILES = ("*.json", "*.jinja", "*.model", "model*.safetensors")
PICKLES = ("pytorch_model*.bin",)
"""weights, where there are no others"""


def fetch(id: str) -> Path:
    """The folder of a model of the hub: configuration, weights and tokenizer, in the hub's own cache; nothing else."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        names = [file.rfilename for file in HfApi().model_info(id).siblings or ()]
        pickled = not any(Path(name).match("model*.safetensors") for name in names)
        return Path(snapshot_download(id, allow_patterns=[*FILES, *(PICKLES if pickled else ())]))
    except Exception as error:  # the network, the hub's answers and an account fail in ways of their own
        raise FaiscaError(
            f"{id} does not exist here, and cannot be had from the hub ({in_one_line(error)}): name a run or "
            "checkpoint folder, a Hugging Face folder or a weights file; without a network here, fetch it elsewhere "
            f"(hf download {id} --local-dir {Path(id).name}) and name that folder"
        ) from error


def check_push(id: str, format: str) -> None:
    """FaiscaError where a folder could not go to the hub, before hours are spent on it."""
    from huggingface_hub import get_token

    if format != "hf":
        raise FaiscaError(f"--push-to-hub {id} does not go with --to {format}: what the hub's users read is --to hf")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", id):
        raise FaiscaError(f"--push-to-hub {id} names no place on the hub: write OWNER/NAME")
    if not get_token():
        raise FaiscaError(f"--push-to-hub {id} needs a token: hf auth login, or HF_TOKEN=…")


def push(folder: Path, id: str) -> str:
    """Upload an exported folder with its model card to a model of the hub, made if need be; returns the address."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        made = api.create_repo(id, exist_ok=True)
        api.upload_folder(repo_id=id, folder_path=folder, commit_message="A model of Faísca MLX")
        return str(made)
    except Exception as error:
        raise FaiscaError(
            f"{folder} is written, but did not go to the hub ({in_one_line(error)}): try hf upload {id} {folder} ."
        ) from error
