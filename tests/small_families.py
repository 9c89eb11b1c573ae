"""Small folders of each Hugging Face family, of transformers' own making: what tests of porting read and spoil."""

import json
from pathlib import Path

from small_ports import complaint, edit_json, torch, transformers

from faisca.data.tokenizer import Tokenizer

transformers.logging.disable_progress_bar()  # it would be among what a port says

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 8}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 8}),
    "mistral, a wide window": ("Mistral", {"sliding_window": 48}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("Qwen3", {"head_dim": 10, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral, tied": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3, "tie_word_embeddings": True}),
    "olmoe": ("Olmoe", {"num_experts": 5, "num_experts_per_tok": 3}),
    "olmoe, normalised": ("Olmoe", EXPERTS | {"norm_topk_prob": True, "tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS | {"moe_intermediate_size": 16, "head_dim": 10}),
    "qwen3_moe, as wide": ("Qwen3Moe", EXPERTS | {"moe_intermediate_size": 40, "norm_topk_prob": True, "head_dim": 6}),
}
"""transformers' class, and what is special about each"""
MIXTURES = ("mixtral", "olmoe", "qwen3_moe")
KINDS = ("one file", "shards", "pickle", "pickled shards")


def family_folder(
    folder: Path, family: str, tokenizer: Tokenizer, dtype="float32", kind="one file", shard="20KB", **more
) -> Path:
    """A folder with random weights everywhere, biases and norms too, so that nothing can be left out unnoticed."""
    name, options = FAMILIES[family]
    ends = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    config = {**SIZES, "vocab_size": tokenizer.vocabulary_size, "pad_token_id": None, **ends, **options, **more}
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, **({"max_shard_size": shard} if kind == "shards" else {}))
    if kind.startswith("pickle"):
        _pickle(model, folder, shards=2 if kind == "pickled shards" else 1)
    for file, content in tokenizer.files().items():
        (folder / file).write_bytes(content)
    return folder


def _pickle(model, folder: Path, shards: int) -> None:
    """As folders were saved before safetensors; transformers 5 writes none any more."""
    (folder / "model.safetensors").unlink()
    tensors = {name: value for name, value in model.state_dict().items() if "lm_head" not in name or not tied(model)}
    names = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    if shards == 1:
        names = ["pytorch_model.bin"]
    parts = {file: dict(list(tensors.items())[i::shards]) for i, file in enumerate(names)}
    for file, part in parts.items():
        torch.save(part, folder / file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def tied(model) -> bool:
    return bool(model.config.tie_word_embeddings)


def require_refusal(tmp_path, tokenizer, capsys, family: str, change: dict[str, object], words: str) -> None:
    """A family's folder with these changes in its config.json is refused in these words, and nothing is written."""
    folder = family_folder(tmp_path / "bad", family, tokenizer)
    edit_json(folder / "config.json", **change)
    line = complaint(capsys, folder, tmp_path / "run", "--to", "faisca")
    assert words in line and "config.json" in line
    assert list(tmp_path.iterdir()) == [folder]
