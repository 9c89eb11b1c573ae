"""`faisca bench --sustained`: speed over time, the meters of energy, and where the machine's power comes from."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.image import imread

from faisca.bench import energy, power, sustained
from faisca.bench.chart import draw_sustained
from faisca.bench.command import bench
from faisca.bench.energy import AppleMeter, NvidiaMeter, RaplMeter
from faisca.bench.results import find_misfit, read_results, rows
from faisca.bench.work import make_work, training_tokens
from faisca.cli import main
from faisca.errors import FaiscaError

WORK = make_work("tiny", quick=True)

# --- energy: RAPL ---------------------------------------------------------------------------------


def zone(root: Path, name: str, kind: str, microjoules: int, most: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_rapl_adds_the_packages_and_neither_their_parts_nor_psys(tmp_path: Path) -> None:
    counters = [
        zone(tmp_path, "intel-rapl:0", "package-0", 100),
        zone(tmp_path, "intel-rapl:1", "package-1", 500),
        zone(tmp_path, "intel-rapl:0:0", "core", 50),
        zone(tmp_path, "intel-rapl:2", "psys", 50),
    ]
    meter = RaplMeter(tmp_path)
    assert meter.joules() == 0
    for counter in counters:
        counter.write_text(f"{int(counter.read_text()) + 200_000}\n")
    assert meter.joules() == pytest.approx(0.4)


def test_a_rapl_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    meter = RaplMeter(tmp_path)
    for value, total in ((100_000, 0.2), (100_000, 0.2), (50_000, 1.15), (60_000, 1.16)):
        counter.write_text(f"{value}\n")
        assert meter.joules() == pytest.approx(total)


def test_a_counter_for_root_alone_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read = Path.read_text

    def refuse(path: Path, *given: object, **named: object) -> str:
        if path == counter:  # whoever runs this test may be root
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(FaiscaError, match="readable by root alone: sudo chmod a"):
        RaplMeter(tmp_path)


def test_without_a_package_there_is_no_rapl(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "psys", 1)
    with pytest.raises(FaiscaError, match="no package of intel-rapl"):
        RaplMeter(tmp_path)


# --- energy: NVML and zeus ------------------------------------------------------------------------


class NVMLError(Exception):
    pass


def nvml(monkeypatch: pytest.MonkeyPatch, counters: dict[object, list[int]]) -> None:
    """A stand-in for pynvml whose GPUs are named by index or UUID."""

    def total(handle: object) -> int:
        if handle not in counters:
            raise NVMLError("Not Supported")
        return counters[handle].pop(0)

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)


@pytest.mark.parametrize(("visible", "handle"), [(None, 0), ("", 0), ("2,0", 2), ("GPU-8f", "GPU-8f")])
def test_nvml_counts_millijoules_of_the_gpu_that_cuda_uses(
    visible: str | None, handle: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml(monkeypatch, {handle: [5_000, 7_500]})
    assert NvidiaMeter().joules() == 2.5


def test_a_gpu_without_a_counter_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, {})
    with pytest.raises(FaiscaError, match="NVML does not count this GPU's energy"):
        NvidiaMeter()


def zeus(monkeypatch: pytest.MonkeyPatch, readings: Iterator[SimpleNamespace]) -> None:
    monitor = SimpleNamespace(get_cumulative_energy=lambda: next(readings))
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", SimpleNamespace(AppleEnergyMonitor=lambda: monitor))


def test_zeus_adds_the_parts_that_the_chip_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"gpu_sram_mj": None, "ane_mj": None, "efficiency_cores_mj": [1, 1]}
    values = ((100, 200, 40), (1_100, 5_200, 140))
    readings = (SimpleNamespace(cpu_total_mj=c, gpu_mj=g, dram_mj=d, **parts) for c, g, d in values)
    zeus(monkeypatch, readings)
    meter = AppleMeter()
    assert meter.counts == "Apple chip: cpu_total, gpu, dram" and meter.joules() == 6.1


def test_a_chip_that_reports_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    zeus(monkeypatch, iter([SimpleNamespace()]))
    with pytest.raises(FaiscaError, match="reports none of cpu_total_mj"):
        AppleMeter()


@pytest.mark.parametrize(
    ("platform", "device", "words"),
    [
        ("darwin", "gpu", "zeus_apple_silicon is not installed"),
        ("linux", "cuda", "pynvml is not installed"),
        ("linux", "gpu", "pynvml is not installed"),
        ("linux", "cpu", "no package of intel-rapl"),
    ],
)
def test_the_meter_fits_the_device_or_the_reason_is_said(
    platform: str, device: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy.sys, "platform", platform)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    for module in ("pynvml", "zeus_apple_silicon"):
        monkeypatch.setitem(sys.modules, module, None)
    meter, why_not = sustained.find_meter(device)
    assert meter is None and words in why_not


# --- power ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({}, "unknown"),
        ({"AC/online": "1"}, "mains"),
        ({"AC/online": "0"}, "battery"),
        ({"BAT0/status": "Discharging"}, "battery"),
    ],
)
def test_the_power_source(files: dict[str, str], source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "POWER_SUPPLIES", tmp_path)
    monkeypatch.setattr(power.sys, "platform", "linux")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f"{text}\n")
    assert power.describe_power()["power"] == source


def test_linux_says_profile_governor_and_charge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "BAT0").mkdir()
    for name, text in {"BAT0/status": "Discharging", "BAT0/capacity": "83", "profile": "low-power"}.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(power.sys, "platform", "linux")
    monkeypatch.setattr(power, "POWER_SUPPLIES", tmp_path)
    monkeypatch.setattr(power, "PROFILE", tmp_path / "profile")
    monkeypatch.setattr(power, "GOVERNOR", tmp_path / "no governor")
    found = power.describe_power()
    assert found == {"power": "battery", "power_mode": "profile low-power", "battery_percent": 83}
    assert power.power_words(found) == "battery, battery 83 %, mode profile low-power"


BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=22806627)\t87%; discharging; 4:32 remaining present: true"""
MAINS = "Now drawing from 'AC Power'"
SETTINGS = """System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 {mode}
 hibernatefile        /var/vm/sleepimage"""


@pytest.mark.parametrize(
    ("battery", "mode", "found"),
    [
        (BATTERY, "lowpowermode         1", ("battery", "low power", 87)),
        (BATTERY, "powermode            2", ("battery", "high power", 87)),
        (MAINS, "powermode            0", ("mains", "automatic", None)),
        (MAINS, "womp                 1", ("mains", None, None)),
    ],
)
def test_macos_says_source_mode_and_charge(
    battery: str, mode: str, found: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {("pmset", "-g", "batt"): battery, ("pmset", "-g"): SETTINGS.format(mode=mode)}
    monkeypatch.setattr(power, "output_of", lambda *command: said[command])
    monkeypatch.setattr(power.sys, "platform", "darwin")
    assert tuple(power.describe_power().values()) == found


def test_an_older_results_power_is_said_as_far_as_it_goes() -> None:
    assert power.power_words({"power": "mains"}) == "mains"


# --- speed over time ------------------------------------------------------------------------------


def test_both_ends_are_compared_by_their_medians() -> None:
    points = [(float(at), 1000.0 if at <= 100 else 800.0) for at in range(1, 301)]
    points[5] = (6.0, 10.0)  # one second that was disturbed
    assert sustained.compare_ends(points) == {
        "span_seconds": 60.0,
        "first": 1000.0,
        "last": 800.0,
        "drop_percent": pytest.approx(20),
    }
    assert sustained.compare_ends([(30.0, 5.0), (60.0, 4.0)])["span_seconds"] == 30
    assert sustained.compare_ends([(90.0, 5.0)])["drop_percent"] == 0


class FakeWorker:
    """A worker whose steps take no time: each second it trains slower."""

    def __init__(self, spec: object) -> None:
        self.name, self.asked = "torch", []

    def __enter__(self) -> "FakeWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, question: str, *arguments: float) -> object:
        self.asked.append(question)
        if question == "describe":
            return {"device": "cpu"}
        return (100 - len(self.asked), 1.0) if question == "train_for" else None


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(sustained, "Worker", FakeWorker)
    monkeypatch.setattr(sustained, "_rest", lambda name, pause: pauses.append(pause))
    return pauses


def test_a_pause_then_steps_then_energy(paused: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    meter = SimpleNamespace(counts="packages", read=0)

    def joules() -> float:
        meter.read += 1
        return 50.0

    meter.joules = joules
    monkeypatch.setattr(sustained, "open_meter", lambda device: meter)
    found = sustained.measure_sustained(SimpleNamespace(name="torch", work=WORK), 6.0)
    tokens = training_tokens(WORK) * sum(100 - asked for asked in range(3, 9))
    assert paused == [2.0] and len(found["points"]) == 6 and found["seconds"] == 6
    assert found["tokens_per_second"] == pytest.approx(tokens / 6)
    assert found["energy"]["joules_per_1000_tokens"] == pytest.approx(50_000 / tokens)
    assert meter.read == 7  # at each point, for counters that wrap, and at the end
    assert sustained.derived_measures(found)["energy"] == {"median": found["energy"]["joules_per_1000_tokens"]}
    assert "J per 1,000 tokens (packages)" in sustained.sustained_line("torch", found)


def test_energy_that_is_not_measured_has_a_reason(paused: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: str) -> None:
        raise FaiscaError("nobody counts here")

    monkeypatch.setattr(sustained, "open_meter", refuse)
    found = sustained.measure_sustained(SimpleNamespace(name="torch", work=WORK), 600.0)
    assert paused == [60.0] and found["energy"] == {"why_not": "nobody counts here"}
    assert sustained.derived_measures(found).keys() == {"sustained"}
    assert "energy not measured: nobody counts here" in sustained.sustained_line("torch", found)


def test_a_sustained_benchmark_of_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path / "warm.json"
    options = ["--preset", "tiny", "--quick", "--rounds", "1", "--backends", "torch", "--cases", "pretrain"]
    assert bench([*options, "--sustained", "3", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    results = read_results(path)
    found = results["subjects"]["torch"]["sustained"]
    assert find_misfit(results) == "" and len(found["points"]) >= 3 and found["seconds"] >= 3
    assert "training, sustained: its end" in printed and "torch, sustained 3 s: first 2 s" in printed
    assert ("energy not measured: " in printed) == ("why_not" in found["energy"])
    assert imread(tmp_path / "warm-sustained.png").std() > 0
    (row,) = (row for row in rows({"a": results["subjects"]["torch"]["measured"]}) if row.key == "sustained")
    assert row.values["a"] == found["last"]


def test_the_picture_has_a_line_for_each_backend(tmp_path: Path) -> None:
    found = {"drop_percent": 3.0, "points": [[at, 100.0 - at] for at in range(1, 20)]}
    results = {
        "machine": {"processor": "M5"},
        "work": {"preset": "spark", "quick": False},
        "subjects": {name: {"sustained": found} for name in ("torch", "mlx")},
    }
    assert imread(draw_sustained(results, tmp_path / "x.png")).std() > 0


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"--sustained={seconds}"]) == 2
    assert "--sustained" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["absent/x.json", "."])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("faisca.bench.command.run_benchmark", lambda *_: pytest.fail("it was measured"))
    assert main(["bench", "--json", str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("faisca: --json ") and "cannot be written" in line
    assert not list(tmp_path.iterdir())
