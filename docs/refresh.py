"""Makes the numbers and the picture in README.md and docs/porting.md anew: `python docs/refresh.py [RUN]`.

RUN is a finished run of the spark preset; without it one is trained first, with torch on the CPU. Writes
docs/images/run.png and run.json, its summary; quantised.json, what mlx-lm's quantisation of its SFT
checkpoint costs; the two tables; and docs/images/twins.png, from the site (tools/site). Tests hold documents,
pictures and files against each other.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from faisca.runs.plots import draw_charts
from faisca.runs.summary import read_summary, summary_markdown
from faisca.text import format_bytes

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- begin: docs/refresh.py -->\n", "<!-- end -->\n"
SHOWN = ("pretrain", "grpo")
"""the charts in the picture"""
HEIGHT = 533
LEFT_OUT = ("time", "tokens/s")
"""rows that say more of the machine than of the product: docs/benchmarks.md has speeds"""
BITS = (8, 4)


def run_table(summary: dict[str, Any]) -> str:
    """README's table."""
    lines = summary_markdown(summary).splitlines(keepends=True)
    return "".join(line for line in lines if line.split("|")[1].strip() not in LEFT_OUT)


def quantised_table(measured: list[dict[str, Any]]) -> str:
    """The table of docs/porting.md."""
    lines = ["| `spark`, pre-trained and fine-tuned | bits a weight | file | bits a byte |", "|---|---:|---:|---:|"]
    first = measured[0]
    for entry in measured:
        width = f"{32 * entry['bytes'] / first['bytes']:.2g}"
        cost = 100 * (entry["bits_per_byte"] / first["bits_per_byte"] - 1)
        bits = f"{entry['bits_per_byte']:.4f}" + (f" ({cost:+.1f} %)" if abs(cost) >= 0.05 else "")
        lines.append(f"| {entry['name']} | {width} | {format_bytes(entry['bytes'])} | {bits} |")
    return "\n".join(lines) + "\n"


def put_table(document: Path, table: str) -> None:
    """Replace what stands between BEGIN and END."""
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    document.write_text(before + BEGIN + table + END + rest.partition(END)[2], encoding="utf-8")


def draw_picture(run: Path, summary: bytes) -> None:
    """The charts side by side; the picture notes which summary it belongs to."""
    charts = {path.stem: Image.open(path) for path in draw_charts(run)}
    scaled = [charts[name].resize((charts[name].width * HEIGHT // charts[name].height, HEIGHT)) for name in SHOWN]
    picture = Image.new("RGB", (sum(chart.width for chart in scaled), HEIGHT), "white")
    for i, chart in enumerate(scaled):
        picture.paste(chart, (i * scaled[0].width, 0))
    note = PngImagePlugin.PngInfo()
    note.add_text("summary", hashlib.sha256(summary).hexdigest())
    picture.save(IMAGES / "run.png", pnginfo=note, optimize=True)


def measure_quantised(run: Path, work: Path) -> list[dict[str, Any]]:
    """Bits a byte of the SFT checkpoint as float32, and as mlx-lm quantises it."""
    (checkpoint,) = [folder for folder in run.glob("checkpoints/sft-*") if _finished(folder)]
    exported = work / "float32"
    _python("-m", "faisca", "port", checkpoint, exported, "--to", "hf")
    folders = {"float32": exported}
    for bits in BITS:
        folders[f"{bits} bits, groups of 64"] = target = work / f"{bits}"
        options = ["-q", "--q-bits", bits, "--trust-remote-code"]
        _python("-m", "mlx_lm", "convert", "--hf-path", exported, "--mlx-path", target, *options)
    found = json.loads(_python(ROOT / "benchmarks" / "bits.py", *folders.values()))
    return [
        {"name": name, "bytes": (folder / "model.safetensors").stat().st_size, "bits_per_byte": found[str(folder)]}
        for name, folder in folders.items()
    ]


def _finished(checkpoint: Path) -> bool:
    return bool(json.loads((checkpoint / "state.json").read_text())["finished"])


def _python(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main(given: Path | None) -> None:
    """Train where no run is given, then write everything."""
    with tempfile.TemporaryDirectory() as folder:
        run = given or Path(folder) / "run"
        if given is None:
            options = ["--preset", "spark", "--backend", "torch", "--device", "cpu", "--out", str(run)]
            subprocess.run([sys.executable, "-m", "faisca", "run", *options], check=True)
        summary, content = read_summary(run), (run / "summary.json").read_bytes()
        quantised = measure_quantised(run, Path(folder))
        draw_picture(run, content)
        (IMAGES / "run.json").write_bytes(content)
        (IMAGES / "quantised.json").write_text(json.dumps(quantised, indent=2) + "\n")
        put_table(ROOT / "README.md", run_table(summary))
        put_table(ROOT / "docs" / "porting.md", quantised_table(quantised))
        _python(ROOT / "tools" / "site" / "build_site.py", "--out", Path(folder) / "site")
        _python(ROOT / "tools" / "site" / "picture.py", Path(folder) / "site" / "html")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
