"""The machines of one bed, its network and its clients. The context manager removes every trace, whatever happened."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.bed import image
from tests.bed.machine import Machine
from tests.bed.network import CLIENT, Network
from tests.bed.remains import Claim


class Cluster:
    """n machines n1.., switched off at first, and a client's namespace that is no machine."""

    def __init__(self, count: int, extra_config: str = "") -> None:
        self._remains = ExitStack()
        try:
            claim = Claim()
            self._remains.callback(claim.release)
            self.tag, self.folder = claim.tag, claim.folder
            self.network = Network(self.tag)
            self._remains.callback(self.network.close)
            self.network.join(CLIENT)
            self._remains.callback(self.network.leave, CLIENT)
            self.machines: list[Machine] = []
            self._remains.callback(self._switch_off)
            for number in range(1, count + 1):
                machine = Machine(f"n{number}", self.folder / f"n{number}", self.network, extra_config)
                self.machines.append(machine)
        except BaseException:
            self._remains.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for machine in self.machines:
                machine.keep_words()
        self.close()

    def close(self) -> None:
        self._remains.close()

    def __getitem__(self, name: str) -> Machine:
        return next(machine for machine in self.machines if machine.name == name)

    def start(self) -> None:
        """Every machine on, every module ready; as many start at a time as there are processors.

        More would only be slower, and modules that start too slowly are taken for frozen ones.
        """
        self.on_each(lambda machine: machine.power_on(within_s=60), os.cpu_count())

    def load_demo_image(self, *machines: Machine) -> None:
        """On these; on all where none is named."""
        archive = self.folder / "demo.tar"
        if not archive.exists():
            image.write_demo(archive)
        for machine in machines:
            machine.load_image(archive)
        if not machines:
            self.on_each(lambda machine: machine.load_image(archive))

    def unlock(self) -> None:
        self.on_each(Machine.unlock, os.cpu_count())

    def on_each(self, action: Callable[[Machine], object], at_a_time: int | None = None) -> None:
        """At the same time on all of them, or on so many. Raises what the first one raised, once all have ended."""
        with ThreadPoolExecutor(at_a_time or max(1, len(self.machines))) as threads:
            list(threads.map(action, self.machines))

    def _switch_off(self) -> None:
        self.on_each(Machine.power_off)

    def client(self, *command: str, timeout_s: float = 10.0) -> subprocess.CompletedProcess[str]:
        """Runs a command on a computer that is no machine of the cluster."""
        return subprocess.run(
            self.network.inside(CLIENT, *command), capture_output=True, text=True, timeout=timeout_s, check=False
        )
