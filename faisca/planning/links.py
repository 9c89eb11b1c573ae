"""Links between devices, and what collectives send over them.

A message of n bytes takes latency + n / bandwidth (Hockney 1994, "The communication challenge for MPP"). The
collectives are those of a ring, in which every process sends to the next (Patarasu & Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations", section 4).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """What one process sends through, in one direction while it receives in the other."""

    name: str
    bandwidth: float
    """bytes a second, one way"""
    latency: float
    """seconds that a message takes however small it is"""


LINKS = (
    # 80 Gbit/s each way (Intel 2023, "Thunderbolt 5 technology brief"). Reports on Apple's technote TN3205, RDMA over
    # Thunderbolt, have less than 50 µs, and some 300 µs over TCP.
    Link("Thunderbolt 5", 80e9 / 8, 50e-6),
    # IEEE 802.3ae. 20 µs from program to program over TCP (Hurwitz & Feng 2003, Hot Interconnects 11).
    Link("10 Gbit Ethernet", 10e9 / 8, 20e-6),
    # 16 GT/s on 16 lanes, of 130 bits 128 are data (PCI Express base specification 4.0).
    # Latencies of these three: NCCL's own model of a ring, protocol Simple (src/graph/tuning.cc: PCI, NVLINK, NET).
    Link("PCIe 4 x16", 16e9 * 16 * 128 / 130 / 8, 5.7e-6),
    # 900 GB/s in both directions together (NVIDIA 2022, "H100 Tensor Core GPU architecture").
    Link("NVLink 4", 900e9 / 2, 3.4e-6),
    # NDR, four lanes (InfiniBand Trade Association's roadmap).
    Link("400 Gbit InfiniBand", 400e9 / 8, 14e-6),
)
"""by name, with nominal bandwidths: no program reaches all of it, so a measured one is better where there is one"""


@dataclass(frozen=True)
class Traffic:
    """What one process sends."""

    sent: float = 0
    """bytes"""
    messages: int = 0
    """one after the other"""

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.sent + other.sent, self.messages + other.messages)

    def times(self, count: int) -> "Traffic":
        """So many of them, one after the other."""
        return Traffic(count * self.sent, count * self.messages)

    def seconds(self, link: Link) -> float:
        """Time over a link."""
        return self.messages * link.latency + self.sent / link.bandwidth


def all_gather(devices: int, size: float, pieces: int = 1) -> Traffic:
    """Every process has 1/N of `size` bytes and gets all: N - 1 messages of size / N for each piece."""
    return Traffic((devices - 1) / devices * size, (devices - 1) * pieces)


def reduce_scatter(devices: int, size: float, pieces: int = 1) -> Traffic:
    """Every process has `size` bytes and gets 1/N of their sum: as many as for all_gather."""
    return all_gather(devices, size, pieces)


def all_reduce(devices: int, size: float, pieces: int = 1) -> Traffic:
    """Every process gets the sum of `size` bytes: reduce-scatter, then all-gather, 2 (N - 1) / N · size bytes."""
    return reduce_scatter(devices, size, pieces) + all_gather(devices, size, pieces)
