"""The peers' recipes: each is what it claims, learns, and is measured on titles that it never saw."""

import math

import numpy as np
import pytest
from small_recipes import PEERS, TINY

from faisca.config import DataConfig
from faisca.data.headlines import Headlines, load_headlines
from faisca.errors import FaiscaError

pytest.importorskip("torch")
import recipes_trainees as trainees
import torch
from recipes_peer import PeerTrainee, cross_entropy, peer_flops

END = 7


def tiny_peer(name, vocabulary=300):
    torch.manual_seed(0)
    script = trainees.load_peer(name)
    options = script.Options(**TINY[name])
    return script, options, script.Model(options, vocabulary)


def test_the_sizes_of_peers_are_their_authors():
    """Counted by hand from their published layouts."""
    counts = {
        "nanogpt": 50_257 * 128 + 64 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128,
        "nanochat": 3 * 4096 * 128 + 2 * 12 * 128**2 + 12 * 2 + 24 + 2 * 2 + 2,
        "minimind": 6400 * 128 + 4 * (3 * 128**2 + 3 * 128 * 448 + 2 * 128 + 2 * 16) + 128,
    }
    for name, count in counts.items():
        script = trainees.load_peer(name)
        options = script.Options()
        model = script.Model(options, getattr(options, "vocabulary", 50_257))
        assert sum(parameter.numel() for parameter in model.parameters()) == count, name


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_causal_knows_nothing_at_first_and_learns(name):
    script, options, model = tiny_peer(name)
    tokens = np.tile(np.array([END, 3, 250, 9, 120, 44, 8, 61], np.uint16), 60)
    inputs, targets = script.batch(tokens, END, options, 0, 0)
    assert inputs.shape == targets.shape == (options.batch_size, 16) and (inputs[:, 1:] == targets[:, :-1]).all()
    # the last token says nothing of the logits before it
    ids = torch.from_numpy(inputs[:1].astype(np.int64))
    other = ids.clone()
    other[0, -1] = 5
    assert torch.equal(model(ids)[:, :-1], model(other)[:, :-1]) and not torch.equal(model(ids), model(other))
    updater, losses = script.Updater(model, options), []
    for step in range(12):
        loss = cross_entropy(model, *script.batch(tokens, END, options, 0, step), "mean")
        loss.backward()
        updater.update(step, 12)
        losses.append(loss.item())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert losses[0] == pytest.approx(math.log(300), rel=0.03) and losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_batches_depend_on_seed_and_step_alone(name):
    script, options, _ = tiny_peer(name)
    tokens = np.where(np.arange(500) % 9, np.arange(500) % 250, END).astype(np.uint16)
    first, again = (script.batch(tokens, END, options, 1, 4)[0] for _ in range(2))
    assert (first == again).all()
    assert (first != script.batch(tokens, END, options, 2, 4)[0]).any()
    assert (first != script.batch(tokens, END, options, 1, 5)[0]).any()
    if name == "nanochat":  # rows begin with the beginning of a text
        assert (first[:, 0] == END).all()


def test_the_schedules_of_peers_are_the_published_ones():
    nanogpt, nanochat, minimind = map(trainees.load_peer, PEERS)
    options = nanogpt.Options()
    rate = [nanogpt.learning_rate(options, step, 2000) for step in (0, 99, 100, 1050, 2000)]
    assert rate == pytest.approx([1e-3 / 101, 1e-1 / 101, 1e-3, 5.5e-4, 1e-4])
    options = minimind.Options()
    rate = [minimind.learning_rate(options, step, 100) for step in (49, 99)]
    assert rate == pytest.approx([5e-4 * 0.55, 5e-4 * 0.1]) and minimind.learning_rate(
        options, 0, 10**6
    ) == pytest.approx(5e-4)
    options = nanochat.Options()
    share = [nanochat.rate_share(options, step, 1000) for step in (0, 39, 350, 675, 1000)]
    assert share == pytest.approx([1 / 40, 1, 1, 0.525, 0.05])
    momentum = [nanochat.muon_momentum(options, step, 2000) for step in (0, 200, 400, 700, 2000)]
    assert momentum == pytest.approx([0.85, 0.91, 0.97, 0.97, 0.90])


def test_nanochats_rules_are_its_authors():
    nanochat = trainees.load_peer("nanochat")
    options = nanochat.Options()
    assert options.horizon(2) == 12 * (2 * 12 * 128**2 + 2 * 12 + 4096 * 128)
    assert options.batch_scale == pytest.approx(math.sqrt(16_384 / 524_288))
    assert options.scaled_decay == pytest.approx(0.28 * options.batch_scale * options.horizon(12) / options.horizon(2))


def test_nanochats_model_begins_as_published_and_is_capped():
    _, _, model = tiny_peer("nanochat")
    assert model.head.weight is not model.tokens.weight
    for block in model.blocks:
        assert not block.out.weight.any() and not block.down.weight.any() and block.query.weight.any()
    with torch.no_grad():
        model.head.weight.mul_(1e5)
        assert model(torch.arange(12)[None]).abs().max() <= 15


def test_muon_makes_matrices_orthogonal_and_decays_only_where_it_agrees():
    nanochat = trainees.load_peer("nanochat")
    random = torch.Generator().manual_seed(0)
    for shape in ((24, 24), (48, 12), (12, 48)):
        values = torch.linalg.svdvals(nanochat.orthogonalise(torch.randn(shape, generator=random)))
        assert values.min() > 0.6 and values.max() < 1.3, shape
        assert values.norm() == pytest.approx(math.sqrt(min(shape)), rel=1e-3)
    weight = torch.nn.Parameter(torch.randn(8, 8, generator=random))
    muon, before = nanochat.Muon(weight), weight.detach().clone()
    for decay in (0.0, 5.0):
        with torch.no_grad():
            weight.copy_(before)
        muon.average.zero_(), muon.squares.zero_()
        weight.grad = before.clone()  # its update has the weights' own signs, mostly
        muon.step(0.01, 0.9, decay)
        moved = (before - weight.detach()) / 0.01
        if decay == 0.0:
            plain = moved
    agrees = plain * before >= 0
    assert torch.allclose(moved - plain, 5.0 * before * agrees, atol=1e-3) and agrees.any() and not agrees.all()


def test_a_peer_is_measured_on_all_titles_and_never_on_those_it_learned(tmp_path):
    headlines = load_headlines(DataConfig(), seed=0)
    small = Headlines(headlines.train.slice(0, 200), headlines.validation.slice(0, 40), "few")
    script = trainees.load_peer("minimind")
    facts = trainees.held_out_facts(small)
    trainee = PeerTrainee(script, script.Options(**TINY["minimind"]), small, 0, facts)
    bits = trainee.bits_per_byte()
    titles = small.validation["title"].to_pylist()
    tokens = sum(len(trainee.tokenizer.encode(title)) + 1 for title in titles)
    size = sum(len(title.encode()) + 1 for title in titles)
    assert len(trainee.held_out) == tokens
    assert bits == pytest.approx(
        tokens * math.log2(trainee.tokenizer.vocabulary_size) / size, rel=0.05
    )  # knows nothing
    loss, counted = trainee.step(0, 10)
    assert counted == 8 * 16 and loss == pytest.approx(math.log(300), rel=0.05)
    weights = sum(p.numel() for name, p in trainee.model.named_parameters() if p.ndim == 2)
    assert trainee.facts["flops_per_token"] == peer_flops(trainee.model, 16) == 6 * weights + 12 * 2 * 16 * 16
    leaked = Headlines(small.train, small.train.slice(0, 3), "leaked")
    with pytest.raises(FaiscaError, match="3 validation titles are training titles too"):
        trainees.held_out_facts(leaked)
