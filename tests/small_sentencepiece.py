"""Tokenizers as SentencePiece makes them, trained on the embedded headlines, in the layouts that models have."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Regex as Pattern
from tokenizers import Tokenizer as Engine

from faisca.data.sample import sample_headlines
from faisca.data.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is missing")

SPECIAL = ("<unk>", "<s>", "</s>")
TOKENS = 600
CONFIG = {
    **{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    **{"add_bos_token": True, "add_eos_token": False, "legacy": False, "clean_up_tokenization_spaces": False},
}
"""tokenizer_config.json of Llama 2"""
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
TINYLLAMA = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)
STYLES = ("llama 2", "tinyllama", "mistral", "gemma", "unigram")


def titles(count: int = 3000) -> list[str]:
    return sample_headlines()[0]["title"].to_pylist()[:count]


@cache
def trained(kind: str) -> bytes:
    """tokenizer.model: a BPE with bytes as Llama 2's, or a Unigram that normalises as T5's."""
    import io

    written = io.BytesIO()
    bpe = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    options = {**bpe, "character_coverage": 0.999, "split_digits": True} if kind == "bpe" else {}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(titles()),
        model_writer=written,
        vocab_size=TOKENS,
        model_type=kind,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return written.getvalue()


def pieces(kind: str) -> tuple[list[tuple[str, float]], bytes]:
    """Tokens with their scores, and the table by which characters are normalised."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(trained(kind))
    return [(piece.piece, piece.score) for piece in model.pieces], model.normalizer_spec.precompiled_charsmap


@cache
def engine(style: str) -> Engine:
    """The tokenizer.json of a model of this style, as its folder has it."""
    found = _unigram() if style == "unigram" else Engine(_bpe())
    found.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    if style == "unigram":
        return found
    words = [normalizers.Replace(" ", "▁")]
    if style in ("llama 2", "tinyllama"):  # as transformers 4 converted them
        found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *words])
    elif style == "mistral":  # since its third version
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:  # no space of its own
        found.normalizer = normalizers.Sequence(words)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    found.decoder = decoders.Sequence(steps if style == "gemma" else [*steps, decoders.Strip(" ", 1, 0)])
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return found


def _bpe() -> models.BPE:
    scored, _ = pieces("bpe")
    vocabulary = {token: i for i, (token, _) in enumerate(scored)}
    return models.BPE(
        vocab=vocabulary, merges=list(_merges(vocabulary)), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )


def _merges(vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """As transformers' converter finds them: pairs in the order of what they make, then of their own parts."""
    for token in sorted(vocabulary, key=vocabulary.__getitem__):
        parts = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in parts if pair[0] in vocabulary and pair[1] in vocabulary]
        yield from sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))


def _unigram() -> Engine:
    scored, characters = pieces("unigram")
    found = Engine(models.Unigram(scored, unk_id=0))
    found.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(characters), normalizers.Replace(Pattern(" {2,}"), "▁")]
    )
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    return found


def files(style: str) -> dict[str, bytes]:
    """The files of a model's folder."""
    # no class of transformers rebuilds Unigram as it is here
    config = CONFIG | ({"tokenizer_class": "PreTrainedTokenizerFast"} if style == "unigram" else {})
    config |= {"add_bos_token": style != "unigram"}
    template = TINYLLAMA if style == "tinyllama" else LLAMA2
    return {
        "tokenizer.json": engine(style).to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "special_tokens_map.json": json.dumps({k: v for k, v in config.items() if k.endswith("_token")}).encode(),
        "chat_template.jinja": template.encode(),
    }


def tokenizer(style: str) -> Tokenizer:
    return Tokenizer.from_files(files(style), style)


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder
