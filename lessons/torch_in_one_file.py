# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch>=2.6",
#     "numpy>=2", "pyarrow", "datasets>=3", "tiktoken", "matplotlib",
# ]
# ///
"""A language model of Portuguese headlines, from random numbers to football.

    uv run torch_in_one_file.py --data headlines.parquet    # small sizes: minutes
    uv run torch_in_one_file.py --data hub --original       # 16 GB, and patience

In one file of PyTorch it goes through three stages, as large models do:
    pretrain   learn to write: predict the next token of headlines
    sft        supervised fine-tuning: the same, on headlines of Portugal
    grpo       reinforcement learning: make headlines about football likelier
mlx_in_one_file.py is this file in MLX, line for line: open them side by side.
All random numbers but dropout's come from NumPy: both go the same way.

Each step is the plain algorithm. Left out, as faster or safer but no clearer:
a key-value cache (here each new token reads its headline again), a loss in
chunks (here all logits exist at once: 3.3 GB with --original, several times
over), checkpoints, mixed precision, compiled steps, micro-batches.
Letters at the end of names are shapes: B or R rows, T positions, D width,
H heads, K = D / H, V tokens to choose from.
"""

import argparse
import copy
import csv
import hashlib
import json
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tiktoken
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pyarrow import parquet
from torch import Tensor, nn
from torch.optim import AdamW

DEVICE = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
HUB = "duarteocarmo/ccnews-titles-2016"
Settings = argparse.Namespace  # the options at the end of this file, and what follows from them


# === 1. Random numbers ================================================================================================
def generator(seed: int, purpose: str, step: int = 0, row: int = 0) -> np.random.Generator:
    """Random numbers that belong to one purpose, step and row: one more sample changes no batch that comes after it."""
    # Philox scrambles a counter, so it can begin anywhere (Salmon et al. 2011, doi 10.1145/2063384.2063405).
    key = np.frombuffer(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, row]))


# === 2. From headlines to batches of tokens ===========================================================================
class Bytes:
    """The simplest tokenizer: a token is a byte of UTF-8, and 256 ends a text. The names are tiktoken's."""

    n_vocab, eot_token = 257, 256

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def open_tokenizer(name: str) -> Any:
    """`bytes`, or `gpt2`: 50,257 pieces of words, found by byte-pair encoding (Radford et al. 2019)."""
    try:
        return tiktoken.get_encoding("gpt2") if name == "gpt2" else Bytes()
    except OSError as error:
        fail(f"GPT-2's vocabulary cannot be downloaded ({type(error).__name__}): take --tokenizer bytes")


def read_headlines(source: str, language: str) -> list[tuple[str, str]]:
    """Title and address of each headline in a language. Each title once, or validation would test what was learnt."""
    text = partial(Path(source).read_text, encoding="utf-8-sig")
    readers: dict[str, Callable[[], list[Any]]] = {  # none guesses types: "001" is a title
        ".txt": lambda: [{"title": line} for line in text().splitlines()],
        ".csv": lambda: list(csv.DictReader(text().splitlines())),
        ".jsonl": lambda: [json.loads(line) for line in text().splitlines()],
        ".parquet": lambda: parquet.read_table(source).to_pylist(),
        "hub": lambda: import_module("datasets").load_dataset(HUB, split="train").to_list(),  # an import of seconds
    }
    kind, found = Path(source).suffix or source, dict[str, str]()
    if kind not in readers:
        fail(f"--data {source} is of no known kind: name a file in {', '.join(readers).replace('hub', 'or hub')}")
    try:
        rows = readers[kind]()
    except (OSError, ValueError, csv.Error) as error:  # Arrow's errors are ValueErrors; so are JSON's and UTF-8's
        fail(f"--data {source} cannot be read ({' '.join(str(error).split())[:90]}): name a whole file, or hub")
    for row in rows:
        if not isinstance(row.get("title", 0), str | None):
            fail(f"--data {source} has no text in a column `title`, only {', '.join(row)}: rename or convert one")
        # NFC: "ã" may be one character, or "a" and a tilde. Only one of them should have to be learnt.
        title = " ".join(unicodedata.normalize("NFC", row["title"] or "").split())
        if title and row.get("language", language) == language:
            found.setdefault(title, row.get("requested_url") or "")
    return list(found.items())


def batch(tokens: np.ndarray, settings: Settings, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, [B, T] each: random stretches of one long row; a target is the token after its input."""
    starts = random.integers(len(tokens) - settings.context, size=settings.batch)
    windows_BS = tokens[starts[:, None] + np.arange(settings.context + 1)]  # S = T + 1
    return windows_BS[:, :-1], windows_BS[:, 1:]


# === 3. The model: GPT-2's decoder (Radford et al. 2019) ==============================================================
class Attention(nn.Module):
    """Each position gathers from those before it: softmax(Q Kᵀ / √K) V in each head (Vaswani et al. 2017)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.heads, self.in_proj = settings.heads, nn.Linear(settings.dim, 3 * settings.dim, bias=False)
        self.out_proj = nn.Linear(settings.dim, settings.dim, bias=False)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.in_proj(x_BTD).reshape(B, T, 3, self.heads, D // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, T, K]
        scores_BHTT = query @ key.transpose(2, 3) / (D // self.heads) ** 0.5
        # A position that saw later ones would read its own target. Softmax makes 0 of -inf.
        later_TT = torch.ones(T, T, dtype=torch.bool, device=DEVICE).triu(1)
        weights_BHTT = torch.where(later_TT, -torch.inf, scores_BHTT).softmax(3)
        attended_BHTK = self.dropout(weights_BHTT) @ value
        return self.out_proj(attended_BHTK.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """Attention among positions, then each by itself. Both add to x ("pre-norm"): gradients pass straight through."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        up, down = nn.Linear(settings.dim, settings.hidden), nn.Linear(settings.hidden, settings.dim)
        self.norm1, self.attention = nn.LayerNorm(settings.dim), Attention(settings)
        self.norm2, self.feed_forward = nn.LayerNorm(settings.dim), nn.ModuleDict({"up": up, "down": down})
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm1(x_BTD)))
        hidden = F.gelu(self.feed_forward["up"](self.norm2(x_BTD)))  # the exact one, x · Φ(x); GPT-2's is approximate
        return x_BTD + self.dropout(self.feed_forward["down"](hidden))


class GPT(nn.Module):
    """Token ids [B, T] to logits [B, T, V]: at each position, a score for every token that might come next."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(settings.vocabulary, settings.dim)
        self.positional_embedding = nn.Embedding(settings.context, settings.dim)
        self.transformer_blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.dropout, self.final_layer_norm = nn.Dropout(settings.dropout), nn.LayerNorm(settings.dim)
        self.out_head = nn.Linear(settings.dim, settings.vocabulary, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        T, context = tokens_BT.shape[1], len(self.positional_embedding.weight)
        if context < T:  # the original had 128 rows for 256 positions: an error on a CPU, garbage on a Mac
            raise ValueError(f"{T} positions do not fit a context of {context}")
        x_BTD = self.dropout(self.token_embedding(tokens_BT) + self.positional_embedding.weight[:T])
        for block in self.transformer_blocks:
            x_BTD = block(x_BTD)
        return self.out_head(self.final_layer_norm(x_BTD))


def initial_values(settings: Settings) -> dict[str, np.ndarray]:
    """Every weight by name, float32, drawn with NumPy: torch's own initial values differ from MLX's."""
    # Tables are N(0, 1). Linear layers are U(±1/√inputs), so that sums over inputs neither grow nor fade; the one that
    # makes queries, keys and values is U(±√(6 / (inputs + outputs))) (Glorot & Bengio 2010).
    values = {}
    for name, shape in ((name, tuple(weight.shape)) for name, weight in GPT(settings).named_parameters()):
        random = generator(settings.seed, f"initial value of {name}")
        if "norm" in name:
            values[name] = np.full(shape, 1.0 if name.endswith("weight") else 0.0)
        elif "embedding" in name:
            values[name] = random.standard_normal(shape)
        else:
            inputs = settings.hidden if "down" in name else settings.dim
            bound = (6 / sum(shape)) ** 0.5 if "in_proj" in name else inputs**-0.5
            values[name] = random.uniform(-bound, bound, shape)
    return {name: value.astype(np.float32) for name, value in values.items()}


def make_model(settings: Settings, values: dict[str, np.ndarray]) -> GPT:
    """A model with these weights; an error where a name or a shape is another."""
    torch.manual_seed(settings.seed)  # for dropout
    model = GPT(settings).to(DEVICE)
    model.load_state_dict({name: torch.tensor(value) for name, value in values.items()}, strict=True)
    return model


def on_device(array: np.ndarray) -> Tensor:
    """A NumPy array as a tensor; token ids as 64-bit integers, which torch's losses ask for."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)
    return tensor if tensor.is_floating_point() else tensor.long()


# === 4. Pre-training and fine-tuning ==================================================================================
def cross_entropy(model: GPT, inputs: np.ndarray, targets: np.ndarray) -> Tensor:
    """Mean of -log p(target) over all positions, in nats: log V for a model that knows nothing."""
    logits_BTV = model(on_device(inputs))  # the array that took 12 GB in the original
    return F.cross_entropy(logits_BTV.flatten(0, 1), on_device(targets).flatten())


def make_optimizer(model: GPT, weight_decay: float) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019): a step is the mean gradient over its usual size, m / √v."""
    # m and v begin at 0, and are corrected for that: torch does so by itself, MLX where it is asked.
    return AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)


def update(model: GPT, optimizer: AdamW, loss_of: Callable[[], Tensor], rate: float) -> float:
    """All of learning: a loss, its gradients, a small step against them. Returns the loss from before the step."""
    optimizer.zero_grad()  # torch adds new gradients to those that are there
    loss = loss_of()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # of all together: no odd batch may throw the model off
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def evaluate(model: GPT, tokens: np.ndarray, settings: Settings) -> float:
    """Mean loss on five batches, the same ones every time, without dropout."""
    model.eval()
    batches = [batch(tokens, settings, generator(settings.seed, "validation", i)) for i in range(5)]
    return float(np.mean([cross_entropy(model, *pair).item() for pair in batches]))


def report(stage: str, steps: int, began: float, points: list[dict[str, float]], remark: str = "") -> None:
    """A line about the newest point, and how long the rest of the stage will take."""
    seconds, point = time.perf_counter() - began, points[-1]
    left = round(seconds / point["step"] * (steps - point["step"]))
    numbers = "  ".join(f"{name} {number:.4f}" for name, number in point.items() if name not in ("step", "tokens"))
    speed = f"{point['tokens'] / seconds:,.0f} tokens/s  {left // 60}:{left % 60:02} left"
    print(f"{stage}  {point['step']}/{steps}  {numbers}  {speed}  {remark}".rstrip(), flush=True)


def train(stage: str, model: GPT, data: tuple[np.ndarray, np.ndarray], settings: Settings) -> list[dict[str, float]]:
    """Pre-training or fine-tuning: they differ in their data. The optimiser begins afresh in each."""
    (tokens, held_out), steps, points = data, getattr(settings, f"{stage}_steps"), []
    optimizer, began = make_optimizer(model, weight_decay=0.1), time.perf_counter()
    for step in range(steps):
        inputs, targets = batch(tokens, settings, generator(settings.seed, stage, step))
        # Adam's means are rough at first, so the rate rises. In the second half it falls: noise averages out.
        rate = settings.rate * min(1, (step + 1) / 20, 2 * (steps - step) / steps)
        model.train()  # dropout, which evaluate() turned off
        loss = update(model, optimizer, partial(cross_entropy, model, inputs, targets), rate)
        points.append({"step": step + 1, "tokens": (step + 1) * inputs.size, "loss": loss})
        if step % max(1, steps // 20) == 0 or step + 1 == steps:
            points[-1]["validation"] = evaluate(model, held_out, settings)
            report(stage, steps, began, points)
    return points


# === 5. Sampling: how it writes =======================================================================================
def draw(logits_RV: Tensor, uniforms_R: Tensor) -> Tensor:
    """A token for each row: with all probabilities laid end to end, that in whose stretch the uniform number falls."""
    cumulative_RV = logits_RV.softmax(1).cumsum(1)  # the same numbers draw the same tokens in torch and MLX
    passed_R = (cumulative_RV <= uniforms_R[:, None] * cumulative_RV[:, -1:]).sum(1)
    return passed_R.clamp(max=logits_RV.shape[1] - 1)


@torch.inference_mode()
def sample(model: GPT, prompt: list[int], uniforms: np.ndarray, temperature: float, end_of_text: int) -> np.ndarray:
    """A completion for each row of `uniforms`, at most as long: ids [R, T], prompt first, filled with end-of-text."""
    # The original never stopped at an end-of-text, and took several headlines for one. And it filled rows on the left,
    # which moves the positions; on the right no mask is needed, as nothing looks there.
    model.eval()
    tokens_RT = on_device(np.array([prompt] * len(uniforms)))
    ended_R = torch.zeros(len(uniforms), dtype=torch.bool, device=DEVICE)
    for uniforms_R in on_device(uniforms.T):
        logits_RV = model(tokens_RT)[:, -1]  # all of it again for each token, and only the last position is used
        chosen_R = draw(logits_RV / temperature, uniforms_R)  # below 1, what is likely becomes likelier still
        chosen_R = torch.where(ended_R, end_of_text, chosen_R)
        tokens_RT = torch.cat([tokens_RT, chosen_R[:, None]], 1)
        ended_R = ended_R | (chosen_R == end_of_text)
        if ended_R.all():
            break
    return tokens_RT.cpu().numpy()


def write(model: GPT, tokenizer: Any, settings: Settings, rows: int, step: int) -> tuple[np.ndarray, int, list[str]]:
    """Headlines that begin with the prompt: token ids [R, T], how many are the prompt's, and the texts after it."""
    # In training each headline followed an end-of-text. So here one comes first: the model knows where it is.
    end, randoms = tokenizer.eot_token, [generator(settings.seed, "sampling", step, row) for row in range(rows)]
    prompt = [end, *tokenizer.encode_ordinary(settings.prompt)]
    uniforms = np.stack([random.random(settings.new_tokens, np.float32) for random in randoms])
    tokens = sample(model, prompt, uniforms, settings.temperature, end)
    completions = [row[: row.index(end)] if end in row else row for row in tokens[:, len(prompt) :].tolist()]
    return tokens, len(prompt), [tokenizer.decode(ids) for ids in completions]


# === 6. GRPO: make likelier what is rewarded (Shao et al. 2024, arXiv 2402.03300) =====================================
CLIP, KL_WEIGHT = 0.2, 0.02
FOOTBALL = """futebol benfica porto sporting bola liga campeão taça golo jogo jogador treinador fifa uefa euro messi
    ronaldo""".split()


def football(text: str) -> float:
    """The reward: 1 for a text with a word of football. It is given what the model wrote, without the prompt."""
    # Composed (NFC), folded, and without punctuation, which hid "Porto," from the original.
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
    return float(any(word in FOOTBALL for word in words))


def advantages(rewards: np.ndarray) -> np.ndarray:
    """How much better than its group each completion is: (reward - mean) / (deviation + 1e-4), float32 [B]."""
    # The group does what a critic does in PPO. The deviation is Bessel's (over B - 1), torch's default but not NumPy's
    # or MLX's. Where all are equal nothing is to be learnt: exactly 0, as rounding noise over 1e-4 would not be.
    if rewards.min() == rewards.max():
        return np.zeros(len(rewards), np.float32)
    return ((rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)).astype(np.float32)


@dataclass(frozen=True)
class Rollouts:
    """Completions to learn from. Position t of a [B, T-1] array is about predicting token t + 1."""

    tokens: np.ndarray  # [B, T] ids, prompt first
    mask: np.ndarray  # [B, T-1] 1 where the model wrote the predicted token, its end-of-text included, else 0
    advantages: np.ndarray  # [B]
    old: np.ndarray  # [B, T-1] log-probabilities under the policy that wrote
    reference: np.ndarray  # [B, T-1] and under the model as it was before GRPO

    def rows(self, chosen: np.ndarray) -> "Rollouts":
        return Rollouts(*(array[chosen] for array in vars(self).values()))


def completion_mask(tokens: np.ndarray, start: int, end_of_text: int) -> np.ndarray:
    """1 up to each row's first end-of-text, that included: the original left it out, and stopping was never learnt."""
    ends, mask = tokens[:, start:] == end_of_text, np.zeros(tokens[:, 1:].shape, np.float32)
    mask[:, start - 1 :] = np.cumsum(ends, 1) - ends == 0
    return mask


def log_probs(model: GPT, tokens: np.ndarray, temperature: float) -> Tensor:
    """Log-probability of each token after the first, [B, T-1], at the temperature that drew it, without dropout."""
    # The original drew at 0.8 among 30 tokens, but scored at 1 among all, now with dropout, now without: no ratio held.
    tokens_BT = on_device(tokens)
    log_p_BTV = (model.eval()(tokens_BT[:, :-1]) / temperature).log_softmax(2)
    return log_p_BTV.gather(2, tokens_BT[:, 1:, None]).squeeze(2)


def policy_loss(model: GPT, rollouts: Rollouts, temperature: float) -> Tensor:
    """-min(ratio · A, clip(ratio) · A) + β · KL, with ratio = π / π_old of a token (PPO: Schulman et al. 2017)."""
    # Averaged over the tokens of each completion, then over completions. Gradients flow through π only.
    mask, A = on_device(rollouts.mask), on_device(rollouts.advantages)[:, None]
    log_p = log_probs(model, rollouts.tokens, temperature)
    # Beside the mask anything may stand, and inf · 0 is NaN: so `where`, and before each exp.
    # In the first pass the ratio is 1, as nothing has moved yet, and the gradient is that of REINFORCE.
    ratio = torch.where(mask > 0, log_p - on_device(rollouts.old), 0.0).exp()
    gain = torch.minimum(ratio * A, ratio.clamp(1 - CLIP, 1 + CLIP) * A)  # beyond the clip there is no more to gain
    # "k3" (Schulman 2020) estimates the KL from the reference by ρ - log ρ - 1, ρ = π_ref / π: unbiased, never below 0.
    log_rho = torch.where(mask > 0, on_device(rollouts.reference) - log_p, 0.0)
    losses_BT = mask * (KL_WEIGHT * (log_rho.exp() - log_rho - 1) - gain)
    return (losses_BT.sum(1) / mask.sum(1).clamp(min=1)).mean()


def reinforce(model: GPT, tokenizer: Any, settings: Settings) -> list[dict[str, float]]:
    """Write a group of headlines, judge them, learn from the judgement, and again."""
    reference, optimizer, began = copy.deepcopy(model), make_optimizer(model, weight_decay=0.0), time.perf_counter()
    points, written, heat = [], 0, settings.temperature
    for step in range(settings.grpo_steps):
        # 1. Write a group from one prompt, and judge it. No gradient is needed: any function of a text will do.
        tokens, start, texts = write(model, tokenizer, settings, settings.group, step)
        rewards = np.array([football(text) for text in texts])
        # 2. Score all tokens with their writer, before it moves, and with the reference: constants, without gradients.
        old, ref = (log_probs(scorer, tokens, heat).detach().cpu().numpy() for scorer in (model, reference))
        mask = completion_mask(tokens, start, tokenizer.eot_token)
        rollouts = Rollouts(tokens, mask, advantages(rewards), old, ref)
        # 3. Learn, in passes over halves of the group. Not from equals: Adam takes full steps at the tiniest gradient.
        for turn in range(settings.passes if rollouts.advantages.any() else 0):
            order = generator(settings.seed, "grpo", step, turn).permutation(settings.group)
            for rows in np.array_split(order, 2):
                update(model, optimizer, partial(policy_loss, model, rollouts.rows(rows), heat), settings.grpo_rate)
        # 4. Look: the reward should rise, and the divergence stay small, or the model forgets how to write.
        log_rho, written = (ref - old)[mask > 0], written + int(mask.sum())
        kl = float((np.exp(log_rho) - log_rho - 1).mean())
        points.append({"step": step + 1, "tokens": written, "reward": float(rewards.mean()), "kl": kl})
        report("grpo", settings.grpo_steps, began, points, settings.prompt + texts[int(rewards.argmax())])
    return points


# === 7. All three stages, and their chart =============================================================================
def main(argv: list[str] | None = None) -> None:
    """Each stage goes on with the model of the one before."""
    settings = parse(argv)
    tokenizer, headlines = open_tokenizer(settings.tokenizer), read_headlines(settings.data, settings.language)
    order = generator(settings.seed, "order of headlines").permutation(len(headlines))
    held_out, others = np.split(order, [len(order) // 20])  # one in twenty is never trained on

    def encode(chosen: np.ndarray, address: str) -> np.ndarray:
        """Titles as one long row of ids. After each comes an end-of-text: so the model learns where headlines end."""
        titles = [headlines[i][0] for i in chosen if address in headlines[i][1]]
        ids = [i for title in titles for i in (*tokenizer.encode_ordinary(title), tokenizer.eot_token)]
        if len(ids) <= settings.context:
            which = f" with {address!r} in their address (or take --address '')" if address else ""
            fail(f"{len(titles)} headlines{which} are too few to learn from or to hold out: take more data")
        return np.array(ids, np.int32)

    parts = {"pretrain": "", "sft": settings.address}
    data = {stage: (encode(others, part), encode(held_out, part)) for stage, part in parts.items()}
    if len(tokenizer.encode_ordinary(settings.prompt)) + settings.new_tokens > settings.context:
        fail(f"--prompt and --new-tokens {settings.new_tokens} do not fit --context {settings.context}: take less")
    settings.vocabulary, settings.hidden, history = tokenizer.n_vocab, 4 * settings.dim, {}
    model = make_model(settings, values := initial_values(settings))
    print(f"{len(headlines):,} headlines, {sum(value.size for value in values.values()):,} weights", flush=True)
    for stage in ("pretrain", "sft", "grpo"):
        if stage == "grpo":
            history[stage] = reinforce(model, tokenizer, settings)
        else:
            history[stage] = train(stage, model, data[stage], settings)
        for text in write(model, tokenizer, settings, rows=3, step=10**6)[2]:  # a step beyond all of GRPO's
            print(f"    {settings.prompt}{text}")
    draw_chart(history, f"{Path(__file__).stem}.png")


def draw_chart(history: dict[Any, list[dict[str, float]]], path: str) -> None:
    """What was noted of each stage, by step."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    for panel, (stage, points) in zip(figure.subplots(1, len(history)), history.items(), strict=True):
        for name in ("loss", "validation", "reward", "kl"):
            if seen := [(point["step"], point[name]) for point in points if name in point]:
                panel.plot(*zip(*seen, strict=True), label=name)
        panel.set(title=stage, xlabel="step", ylabel="mean reward; kl in nats" if stage == "grpo" else "nats a token")
        panel.legend()
    figure.savefig(path)
    print(f"chart: {path}")


# === 8. Options =======================================================================================================
OPTIONS = {  # name: (small, the original's, the least, what it is)
    "data": ("hub", "hub", None, ".parquet, .csv, .jsonl with a column `title`, .txt with a title a line, or hub"),
    "language": ("pt", "pt", None, "take these headlines, where there is a column `language`"),
    "address": (".pt/", ".pt/", None, "fine-tune on those with this in the column `requested_url`"),
    "tokenizer": ("bytes", "gpt2", None, "bytes, or gpt2"),
    "context": (96, 256, 2, "positions that the model sees, and tokens in a window"),
    "dim": (96, 128, 1, "width of the model"),
    "layers": (3, 4, 1, "blocks"),
    "heads": (3, 4, 1, "attention heads in each"),
    "dropout": (0.0, 0.1, 0, "share of activations that training sets to 0"),
    "batch": (32, 64, 1, "windows in a step of training"),
    "rate": (3e-3, 3e-4, 0, "highest learning rate of training"),
    "pretrain_steps": (1200, 1880, 1, "steps of pre-training"),
    "sft_steps": (300, 625, 1, "steps of fine-tuning"),
    "grpo_steps": (30, 18, 1, "groups to write and learn from"),
    "grpo_rate": (1e-4, 1e-5, 0, "learning rate of grpo"),
    "group": (24, 24, 2, "completions in a group"),
    "passes": (2, 4, 1, "passes over a group"),
    "prompt": ("", "Alerta", None, "what headlines begin with; no space at its end, as tokens have theirs in front"),
    "new_tokens": (80, 80, 1, "tokens to write at most"),
    "temperature": (0.8, 0.8, 0.01, "of writing: below 1 likely tokens come more often, above 1 less"),
    "seed": (1337, 1337, 0, "all random numbers follow from it"),
}


def parse(argv: list[str] | None) -> Settings:
    """The options; where one is not given, its small number or the original's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = fail  # type: ignore[method-assign]
    parser.add_argument("--original", action="store_true", help="the original's numbers in place of small ones")
    for name, (small, original, _, meaning) in OPTIONS.items():
        option, what = f"--{name.replace('_', '-')}", f"{meaning} ({small or 'none'}; original: {original})"
        choices = ("bytes", "gpt2") if name == "tokenizer" else None
        parser.add_argument(option, type=type(small), choices=choices, metavar=type(small).__name__.upper(), help=what)
    given = vars(parser.parse_args(argv))
    for name, (small, original, least, _) in OPTIONS.items():
        given[name] = (original if given["original"] else small) if given[name] is None else given[name]
        if least is not None and not least <= given[name] < 2**63:
            fail(f"--{name.replace('_', '-')} {given[name]} is out of range: take {least} or more")
    if given["dim"] % given["heads"] or given["dropout"] >= 1:
        fail(f"--heads {given['heads']} has to divide --dim {given['dim']}, and --dropout to be less than 1")
    return Settings(**given)


def fail(message: str) -> NoReturn:
    """Bad input is one line, and exit status 2."""
    print(f"{Path(__file__).name}: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    main()
