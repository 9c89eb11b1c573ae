"""The charts: what is drawn from which records, and the files."""

import json
import struct

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from faisca.errors import FaiscaError
from faisca.runs.charts.curves import STYLE, series, smooth
from faisca.runs.charts.grpo import grpo_chart
from faisca.runs.plots import draw_charts, training_chart


def training_records(steps: int = 60) -> list[dict]:
    records: list[dict] = []
    for step in range(steps + 1):
        place = {"stage": "pretrain", "step": step, "epoch": step / 20, "tokens_seen": step * 2048}
        if step:
            records.append(place | {"loss": 4 + 4 / step})
        if step % 20 == 0:
            measured = {"validation_loss": 8 - step / 20, "bits_per_byte": 3 - step / 60}
            records.append(place | measured | {"portugal_validation_loss": 8.5 - step / 20})
    return records


def grpo_records(steps: int = 5, **more: float) -> list[dict]:
    return [{"stage": "grpo", "step": i, "reward_mean": i / 10, "kl": i / 100} | more for i in range(1, steps + 1)]


def write(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def labelled_lines(axes) -> dict:
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_a_chart_for_each_stage_that_has_data(tmp_path):
    write(
        tmp_path,
        [*training_records(), {"stage": "sft", "step": 1, "epoch": 0.1, "loss": None}, *grpo_records()],
    )
    paths = draw_charts(tmp_path)
    assert paths == [tmp_path / "charts" / "pretrain.png", tmp_path / "charts" / "grpo.png"]
    assert sorted((tmp_path / "charts").iterdir()) == sorted(paths)
    for path in paths:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", content[16:24]) == (1440, 800)


def test_charts_are_replaced_and_the_same_each_time(tmp_path):
    write(tmp_path, training_records())
    (path,) = draw_charts(tmp_path)
    first = path.read_bytes()
    assert draw_charts(tmp_path) == [path]
    assert path.read_bytes() == first
    write(tmp_path, training_records(steps=40))
    draw_charts(tmp_path)
    assert path.read_bytes() != first


def test_a_folder_without_metrics_is_an_error(tmp_path):
    with pytest.raises(FaiscaError, match=r"has no metrics\.jsonl"):
        draw_charts(tmp_path)
    write(tmp_path, [])
    assert draw_charts(tmp_path) == []


def test_the_training_chart_shows_losses_by_epoch_and_tokens_above():
    figure = training_chart(training_records(), "Pre-training")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epochs", "loss (nats per token)")
    lines = labelled_lines(axes)
    assert list(lines) == ["training, smoothed", "validation", ".pt validation"]
    assert lines["validation"].get_xdata().tolist() == [0, 1, 2, 3]
    assert lines["validation"].get_ydata().tolist() == [8, 7, 6, 5]
    assert len(lines["training, smoothed"].get_xdata()) == 60
    assert np.allclose(axes.get_xlim(), (-0.06, 3.06))
    (top,) = axes.child_axes
    assert top.get_xlabel() == "tokens seen"
    figure.draw_without_rendering()
    assert np.allclose(top.get_xlim(), np.array(axes.get_xlim()) * 20 * 2048)
    assert figure.get_suptitle() == "Pre-training\nvalidation loss 5.000, 2.000 bits per byte (last point)"


def test_a_mixture_of_experts_has_panels_of_its_routers_under_the_losses():
    routers = {"expert_load_max": 1.5, "router_entropy": 2.0, "dropped_share": 0.0}
    figure = training_chart([record | routers for record in training_records()], "mixture")
    figure.draw_without_rendering()
    losses, *panels = figure.axes
    assert "training, smoothed" in labelled_lines(losses)
    assert [axes.get_title().split()[0] for axes in panels] == ["busiest", "router", "choices"]
    assert [set(axes.lines[0].get_ydata()) for axes in panels] == [{1.5}, {2.0}, {0.0}]


def test_the_title_prefers_the_whole_validation_set():
    whole = {"step": 60, "full_validation_loss": 5.25, "full_bits_per_byte": 1.5}
    title = training_chart([*training_records(), whole], "SFT").get_suptitle()
    assert title == "SFT\nvalidation loss 5.250, 1.500 bits per byte (all validation titles)"


def test_text_is_large_enough(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("faisca.runs.plots.save_figure", lambda figure, path: drawn.append(figure))
    everything = grpo_records(entropy=3.0, completion_length_mean=9.0, reward_std=0.2, football_share=0.9)
    routers = {"expert_load_max": 1.5, "router_entropy": 2.0, "dropped_share": 0.0}
    write(tmp_path, [record | routers for record in training_records()] + everything)
    draw_charts(tmp_path)
    assert len(drawn) == 2
    for figure in drawn:
        figure.draw_without_rendering()
        texts = [text for axes in figure.axes for text in axes.findobj(lambda artist: hasattr(artist, "get_fontsize"))]
        assert min(text.get_fontsize() for text in texts if text.get_text()) >= 11


@pytest.mark.parametrize(
    "record",
    [
        {"step": 1, "epoch": 0.01, "tokens_seen": 64, "loss": 8.3},
        {"step": 0, "epoch": 0.0, "tokens_seen": 0, "validation_loss": 8.3, "bits_per_byte": None},
        {"step": 0, "epoch": 0.0, "portugal_validation_loss": 8.3},
    ],
)
def test_one_point_is_enough_and_is_visible(record):
    figure = training_chart([record], "one")
    figure.draw_without_rendering()
    (line,) = labelled_lines(figure.axes[0]).values()
    assert line.get_marker() in ("o", "s")
    assert figure.axes[0].get_xlim()[0] < line.get_xdata()[0] < figure.axes[0].get_xlim()[1]


def test_nothing_measured_is_no_chart():
    assert training_chart([{"step": 1, "epoch": 0.1, "loss": None}], "none") is None
    assert grpo_chart([{"step": 1, "full_validation_loss": 4.0}], "none") is None


def test_series_leaves_out_what_is_no_number():
    records = [{"x": 1, "y": 2.0}, {"x": 2, "y": None}, {"x": 3}, {"x": None, "y": 4.0}, {"x": 5, "y": 6}]
    x, y = series(records, "x", "y")
    assert x.tolist() == [1, 5]
    assert y.tolist() == [2, 6]


@pytest.mark.parametrize("size", [1, 2, 3, 40, 1000])
def test_smoothing_keeps_a_constant_and_both_ends_near(size):
    assert np.allclose(smooth(np.full(size, 3.0)), 3.0)
    line = np.arange(size, dtype=float)
    smoothed = smooth(line)
    assert smoothed[0] == line[0]
    assert np.abs(smoothed - line).max() <= max(1, size / 50)


def test_smoothing_calms_noise():
    noise = np.random.default_rng(0).standard_normal(1000)
    assert smooth(noise)[50:].std() < 0.25


def test_the_grpo_chart_has_a_panel_for_each_measure():
    figure = grpo_chart(grpo_records(entropy=3.0, completion_length_mean=9.0), "GRPO")
    titles = [axes.get_title("left") or axes.get_title() for axes in figure.axes]
    assert titles == [
        "mean reward (football)",
        "KL to the reference (nats per token)",
        "entropy (nats per token)",
        "mean completion length (tokens)",
    ]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert figure.get_suptitle() == "GRPO\nreward 0.10 → 0.50, KL 0.050 (last step)"
    assert len(grpo_chart(grpo_records(), "GRPO").axes) == 2
    assert len(grpo_chart(grpo_records(entropy=3.0), "GRPO").axes) == 3
    assert len(grpo_chart([{"step": 1, "reward_mean": 1.0}], "GRPO").axes) == 1


EVERYTHING = {
    **{"reward_std": 0.2, "entropy": 3.0, "distinct_share": 0.9, "truncated_share": 0.1, "equal_groups_share": 0.3},
    **{"completion_length_mean": 9.0, "completion_length_min": 3, "completion_length_max": 30},
    **{"repeated_word_share": 0.1, "keyword_share": 0.2, "ratio_mean": 1.0, "ratio_max": 1.4},
    **{"clip_low_share": 0.01, "clip_high_share": 0.02, "rollout_mismatch_mean": 1e-7, "rollout_mismatch_max": 3e-5},
    **{"seconds_rollout": 0.5, "seconds_scoring": 0.01, "seconds_update": 1.0},
    **{f"reward/{name}_mean": 0.5 for name in ("football", "length", "distinct", "exact", "score")},
}


def test_everything_that_is_measured_has_its_curve():
    figure = grpo_chart(grpo_records(**EVERYTHING), "GRPO", "sum of 5: a, b, c, d, e")
    titles = [axes.get_title("left") or axes.get_title() for axes in figure.axes]
    assert titles[:4] == [
        "mean reward (sum of 5) ± deviation",
        "KL to the reference (nats per token)",
        "entropy (nats per token)",
        "completion length (tokens; min–max)",
    ]
    curves = {label for axes in figure.axes for label in labelled_lines(axes)}
    assert curves >= {"football", "score", "distinct", "truncated", "equal groups", "low", "high", "largest"}
    assert curves >= {"repeated", "rewarded keywords", "rollout", "scoring", "update", "mean", "max"}
    # what one function alone says is the reward already
    assert "football" not in {
        label
        for axes in grpo_chart(grpo_records(**{"reward/football_mean": 0.5}), "GRPO").axes
        for label in labelled_lines(axes)
    }


def tick_labels(axes) -> list:
    """The labels that are seen: not those beyond the ends, or of an axis that panels share."""
    found = [axis.get_offset_text() for axis in (axes.xaxis, axes.yaxis)]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        found += [tick.label1 for tick in ticks if tick.label1.get_visible()]
    return found


@pytest.mark.parametrize("more", [EVERYTHING, {"entropy": 3.0}, {"reward_std": 0.1, "kl": 1e-8}, {"ratio_max": 1e4}])
def test_no_words_of_the_chart_overlap(more):
    with matplotlib.rc_context(STYLE):
        figure = grpo_chart(grpo_records(50, **more), "GRPO · spark on torch", "football")
        figure.draw_without_rendering()
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = []
        for axes in figure.axes:
            title = axes._left_title.get_window_extent(renderer)
            assert title.x1 <= figure.bbox.x1
            boxes += [title, *(label.get_window_extent(renderer) for label in tick_labels(axes) if label.get_text())]
            if legend := axes.get_legend():
                box = legend.get_window_extent(renderer)
                boxes.append(box)
                highest = max(line.get_window_extent(renderer).y1 for line in axes.lines)
                assert highest <= box.y0 + 1, "a curve runs through the names"
        boxes = [box for box in boxes if box.width and box.height]
        for i, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[:i])


def test_the_spread_of_rewards_is_a_band():
    reward = grpo_chart(grpo_records(reward_std=0.2), "GRPO").axes[0]
    (band,) = reward.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert np.isclose(heights.min(), 0.1 - 0.2)
    assert np.isclose(heights.max(), 0.5 + 0.2)
    assert not grpo_chart(grpo_records(reward_std=None), "GRPO").axes[0].collections


def test_the_reward_is_drawn_under_its_own_name_and_nothing_over_it():
    records = [record | {"football_share": 0.9} for record in grpo_records(reward_std=0.2)]
    reward = grpo_chart(records, "GRPO", "/far/away/rewards.py:short").axes[0]
    assert (reward.get_title("left") or reward.get_title()) == "mean reward (rewards.py:short) ± deviation"
    assert len(reward.lines) == 1 and reward.get_legend() is None


def test_rewards_that_are_all_unknown_still_make_a_chart():
    records = [{"step": i, "reward_mean": None, "reward_std": None, "completion_length_mean": 9.0} for i in (1, 2, 3)]
    figure = grpo_chart(records, "GRPO", "mine.py:score")
    figure.draw_without_rendering()
    reward, length = figure.axes
    assert not reward.lines and reward.texts[0].get_text() == "no completion could be scored"
    assert len(length.lines[0].get_xdata()) == 3
    assert figure.get_suptitle() == "GRPO\nnothing scored (last step)"


@pytest.mark.parametrize(("asked", "label"), [(".es/", ".es validation"), ("", "SFT validation")])
def test_the_second_validation_curve_is_named_after_what_sft_asks_for(asked, label, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("faisca.runs.plots.save_figure", lambda figure, path: drawn.append(figure))
    write(tmp_path, training_records())
    (tmp_path / "config.toml").write_text(f'[sft]\nurl_contains = "{asked}"\n')
    draw_charts(tmp_path)
    assert label in labelled_lines(drawn[0].axes[0]) and ".pt validation" not in labelled_lines(drawn[0].axes[0])


def test_rewards_of_any_range_fit():
    records = [{"step": i, "reward_mean": 100.0 * i} for i in range(-3, 4)]
    low, high = grpo_chart(records, "GRPO").axes[0].get_ylim()
    assert low < -300 < 300 < high


def test_the_title_names_preset_and_backend(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("faisca.runs.plots.save_figure", lambda figure, path: titles.append(figure.get_suptitle()))
    write(tmp_path, [{"stage": "sft", "step": 1, "epoch": 1.0, "loss": 4.0}])
    draw_charts(tmp_path)
    (tmp_path / "config.toml").write_text('preset = "faisca"\n')
    draw_charts(tmp_path)
    summary = {"backend": "mlx", "device": "gpu", "preset": "apple", "seed": 1, "parameters": 2, "stages": []}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    draw_charts(tmp_path)
    name = "Supervised fine-tuning · "
    assert titles == [name + tmp_path.name, name + "faisca", name + "apple on mlx"]
