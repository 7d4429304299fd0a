"""How fast GPUs exchange arrays, by the data sheets: within a host, and between hosts over a network.

Sources: NVIDIA's data sheets of the H100, A100 and V100 (NVLink: 900, 600 and 300 GB/s for both directions together)
and of the L4 and T4 (PCI Express 4.0 and 3.0 with 16 lanes: 64 and 32 GB/s for both directions). Network: DGX H100 has
eight adapters of 400 Gbit/s a host, DGX A100 eight of 200 Gbit/s; Amazon's hosts of eight V100 (p3dn.24xlarge), L4
(g6.48xlarge) and T4 (g4dn.metal) have 100 Gbit/s. Latencies: NVIDIA's NCCL, src/graph/tuning.cc, protocol LL.
"""

import dataclasses
import math

DEVICES_OF_HOST = 8
BASE_LATENCY, NETWORK_LATENCY = 6.8e-6, 5.0e-6  # seconds: of a call, and of a step between hosts
NVLINK_LATENCY, PCIE_LATENCY = 0.6e-6, 1.0e-6  # seconds of a step within a host


@dataclasses.dataclass(frozen=True)
class Links:
    """The links of a kind of GPU.

    Attributes:
      name: of those within a host.
      bandwidth: bytes per second of a GPU in one direction, within a host.
      latency: seconds of a step between two GPUs of a host.
      network: bytes per second of a host in one direction.
    """

    name: str
    bandwidth: float
    latency: float
    network: float

    def seconds(self, kind: str, size: float, devices: int) -> float:
        """Returns the time of an exchange among all devices, as NCCL's rings take it.

        Args:
          kind: "all-reduce", which sends everything twice around the ring, or another collective.
          size: bytes of the whole array.
          devices: that take part, eight in a host.
        """
        if devices == 1:
            return 0.0
        hosts = -(-devices // DEVICES_OF_HOST)
        steps = min(devices, DEVICES_OF_HOST) - 1
        latency = BASE_LATENCY + 2 * (steps * self.latency + math.ceil(math.log2(hosts)) * NETWORK_LATENCY)
        slowest = min(self.bandwidth, self.network) if hosts > 1 else self.bandwidth
        rounds = 2 if kind == "all-reduce" else 1
        return latency + rounds * (devices - 1) / devices * size / slowest

    def describe(self, devices: int) -> str:
        """Returns name and bandwidth of the links among so many devices."""
        within = f"{self.name}, {self.bandwidth / 1e9:g} GB/s each way"
        if devices <= DEVICES_OF_HOST:
            return within
        return f"{within}; {self.network / 1e9:g} GB/s between hosts of {DEVICES_OF_HOST}"


LINKS = {
    "h100": Links("NVLink", 450e9, NVLINK_LATENCY, 400e9),
    "a100": Links("NVLink", 300e9, NVLINK_LATENCY, 200e9),
    "v100": Links("NVLink", 150e9, NVLINK_LATENCY, 12.5e9),
    "l4": Links("PCI Express", 32e9, PCIE_LATENCY, 12.5e9),
    "t4": Links("PCI Express", 16e9, PCIE_LATENCY, 12.5e9),
}
