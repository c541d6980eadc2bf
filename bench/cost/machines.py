"""The constants of the model: what a GPU can do at most, and how long what takes.

None is measured: they are the makers' figures and those of published microbenchmarks, rounded. `python -m bench.floors`
measures most of them on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

# Cycles until what an instruction brings can be used, by the start of its name. Memory: from L2, where a graph that is
# replayed finds its inputs.
HOPPER = {
    "LDG": 270.0, "LD.": 230.0, "ATOMG": 330.0, "ATOM.": 330.0, "RED": 20.0, "STG": 20.0, "ST.": 20.0,
    "LDS": 30.0, "STS": 20.0, "ATOMS": 60.0, "LDC": 40.0, "LDL": 40.0, "STL": 20.0, "ULDC": 30.0,
    "SHFL": 24.0, "MATCH": 30.0, "REDUX": 24.0, "CREDUX": 24.0, "MUFU": 23.0, "S2R": 25.0, "S2UR": 25.0,
    "I2F": 18.0, "F2I": 18.0, "F2F": 18.0, "I2I": 18.0, "POPC": 18.0, "FLO": 18.0, "BREV": 18.0, "R2UR": 12.0,
    "DADD": 16.0, "DMUL": 16.0, "DFMA": 16.0, "DSETP": 16.0,
    "BAR": 25.0, "WARPSYNC": 10.0, "UCGABAR_WAIT": 220.0, "MEMBAR": 300.0, "ERRBAR": 20.0, "ACQBULK": 20.0,
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """device: its number in the harness (tests/simt/runtime.h); a B200 is taken to launch what an H200 does. node: µs
    that a launch in a graph costs by itself; launch: µs of the host for one outside of a graph.
    """

    name: str
    architecture: str
    device: int
    multiprocessors: int
    hertz: float
    memory: float  # bytes a second, as far as they can be reached
    cache: float  # bytes a second from L2
    lengths: dict[str, float]
    node: float
    launch: float = 2.2
    schedulers: int = 4


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("H200", "sm_90", 3, 132, 1.98e9, 4.3e12, 5.5e12, HOPPER, 1.2),
        Machine("A100", "sm_80", 4, 108, 1.41e9, 1.8e12, 3.5e12, HOPPER | {"LDG": 200.0}, 1.5),
        Machine("B200", "sm_100", 3, 148, 1.96e9, 7.0e12, 8.0e12, HOPPER | {"LDG": 300.0}, 1.2),
    )
}
