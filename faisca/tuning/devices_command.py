"""What `faisca plan --devices N` says: memory of one of N devices, what it sends, and how long that is on its way."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from faisca.commands.parse import print_json
from faisca.errors import FaiscaError
from faisca.lora import adapted
from faisca.parameters import count_parameters, parameter_shapes, trained
from faisca.planning.devices import WAYS, device_plan, largest_rows, step_traffic
from faisca.planning.links import LINKS, Link, Traffic
from faisca.planning.plan import PARTS
from faisca.system.tables import PlainConsole, print_table
from faisca.text import format_bytes
from faisca.tuning.opening import Opened

BACKWARD = 2 / 3
"""of a step's time, the share of the backward pass, which gradients can be sent beside: its products are twice those of
the forward pass (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)"""


@dataclass(frozen=True)
class Devices:
    """How many devices, and over what."""

    count: int
    links: tuple[Link, ...] = LINKS

    def __post_init__(self) -> None:
        if self.count < 1:
            raise FaiscaError(f"--devices {self.count} is out of range: use a whole number above 0")


def own_link(bandwidth: float | None, latency: float | None) -> tuple[Link, ...]:
    """The links of the table, or the user's: GB/s one way, and µs a message."""
    if bandwidth is None and latency is None:
        return LINKS
    if bandwidth is None or latency is None:
        raise FaiscaError("a link of your own needs both: --bandwidth GB/s, one way, and --latency of a message in µs")
    if not 0 < bandwidth < float("inf"):
        raise FaiscaError(f"--bandwidth {bandwidth} is out of range: use a number of GB/s above 0")
    if not 0 <= latency < float("inf"):
        raise FaiscaError(f"--latency {latency} is out of range: use a number of µs, 0 or above")
    return (Link("this link", bandwidth * 1e9, latency * 1e-6),)


def plan_devices(opened: Opened, devices: Devices, speed: float | None, json: bool) -> None:
    """Print it, as a table or as one JSON object; the speed is one device's, in tokens a second."""
    found = {
        (stage, way): _facts(opened, devices, stage, way, speed)
        for stage in opened.config.run.stages
        for way in WAYS[opened.runtime.backend]
    }
    if json:
        numbers = {"parameters": count_parameters(opened.model), "memory_bytes": opened.memory}
        ways = [{"stage": stage, "way": way, **facts} for (stage, way), facts in found.items()]
        links = [asdict(link) for link in devices.links]
        print_json(
            {"backend": opened.runtime.backend, "devices": devices.count, **numbers, "links": links, "ways": ways}
        )
        return
    console = PlainConsole()
    console.print(
        f"{count_parameters(opened.model):,} parameters on {devices.count} devices with {format_bytes(opened.memory)} "
        f"each ({opened.memory_words}); {opened.runtime.backend}, {opened.runtime.dtype}",
        soft_wrap=True,
    )
    print_table(console, _memory(found), by="columns")
    print_table(console, _links(devices, found), by="columns")
    for line in _words(opened, devices, found, speed):
        console.print(line, soft_wrap=True)


def _facts(opened: Opened, devices: Devices, stage: str, way: str, speed: float | None) -> dict[str, Any]:
    """What is known of a stage in one of the ways, as --json has it."""
    config, model, runtime = opened.config, opened.model, opened.runtime
    made = device_plan(config, model, runtime, stage, devices.count, way)
    sent = step_traffic(config, stage, devices.count, way, runtime.backend, trained_numbers(opened, stage))
    return {
        "total_bytes": made.total,
        "moment": made.peak,
        "bytes": {name: round(size) for name, size in made.parts.items()},
        "fits": made.total <= opened.memory,
        "rows": made.load.rows,
        "largest_rows": largest_rows(config, model, runtime, stage, devices.count, way, opened.memory),
        "sent_bytes": round(sent.sent),
        "messages": sent.messages,
        "links": {link.name: link_facts(sent, link, _seconds(opened, devices, stage, speed)) for link in devices.links},
    }


def trained_numbers(opened: Opened, stage: str) -> int:
    """Numbers that a stage trains, whose gradients are sent: all, or an adapter's."""
    model = adapted(opened.model, getattr(opened.config, stage))
    shapes = parameter_shapes(model)
    frozen = [name for name in shapes if not trained(name, model)]
    return count_parameters(model) - (count_parameters(opened.model) if frozen else 0)


def _seconds(opened: Opened, devices: Devices, stage: str, speed: float | None) -> float | None:
    """What a device computes in a step; a rollout has another speed than training's, which is not guessed."""
    if speed is None or stage == "grpo":
        return None
    tokens = getattr(opened.config, stage).batch_size * opened.config.data.window
    return float(tokens / devices.count / speed)


def link_facts(sent: Traffic, link: Link, computing: float | None) -> dict[str, float | None]:
    """Seconds of communication, and its share of a step: after the backward pass, and beside it as far as that goes."""
    seconds = sent.seconds(link)
    if computing is None:
        return {"seconds": seconds, "share": None, "share_overlapped": None}
    left = max(0.0, seconds - BACKWARD * computing)
    return {
        "seconds": seconds,
        "share": seconds / (seconds + computing),
        "share_overlapped": left / (left + computing),
    }


def _table(found: dict[tuple[str, str], dict[str, Any]], first: str) -> Table:
    table = Table(first, *(stage if way == "data parallel" else f"{stage}, {way}" for stage, way in found))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _memory(found: dict[tuple[str, str], dict[str, Any]]) -> Table:
    """Bytes of each part at the peak."""
    table, every = _table(found, "a device"), list(found.values())
    for part in (*PARTS, "gathered", "buckets"):
        if any(part in facts["bytes"] for facts in every):
            table.add_row(
                part, *(format_bytes(facts["bytes"][part]) if part in facts["bytes"] else "–" for facts in every)
            )
    table.add_row("total", *(format_bytes(facts["total_bytes"]) for facts in every), style="bold")
    table.add_row("most is alive at", *(facts["moment"] for facts in every))
    table.add_row("rows at a time", *(str(facts["rows"]) for facts in every))
    table.add_row("most rows that fit", *(str(facts["largest_rows"] or "none") for facts in every))
    table.add_row("sends in a step", *(format_bytes(facts["sent_bytes"]) for facts in every))
    table.add_row("messages in a step", *(f"{facts['messages']:,}" for facts in every))
    return table


def _links(devices: Devices, found: dict[tuple[str, str], dict[str, Any]]) -> Table:
    """Seconds over each link, and shares where a speed is known."""
    table = _table(found, "a step's communication")
    for link in devices.links:
        table.add_row(link.name, *(_cell(facts["links"][link.name]) for facts in found.values()))
    return table


def _cell(facts: dict[str, float | None]) -> str:
    seconds = f"{1e3 * (facts['seconds'] or 0):,.2f} ms"
    if facts["share"] is None:
        return seconds
    return f"{seconds}, {facts['share']:.1%} to {facts['share_overlapped']:.1%}"


def _words(
    opened: Opened, devices: Devices, found: dict[tuple[str, str], dict[str, Any]], speed: float | None
) -> list[str]:
    """What the tables do not say."""
    if speed:
        lines = [
            "shares of a step's time: where all is sent after the backward pass, and where as much as can be beside it"
        ]
    else:
        lines = ["for shares of a step's time add --tokens-per-second N, of one device"]
    for stage, way in found:
        total, most = format_bytes(found[stage, way]["total_bytes"]), format_bytes(opened.memory)
        if not found[stage, way]["fits"]:
            lines.append(f"{stage}, {way}, does not fit {devices.count} devices: {total} of {most} on each")
    return list(dict.fromkeys(lines))
