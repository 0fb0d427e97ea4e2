"""Host: the machine a number was measured on. Numbers of two hosts are never compared without saying so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Facts that make two measurements comparable. `negawatt.hardware.host.this_host()` collects them.

    Attributes:
        name: host name.
        machine_id: stable identity of the operating-system installation ("" where the system gives none).
        boot_id: identity of the current boot ("" where the system gives none); counters restart with it.
        system: operating system and kernel release.
        cpu: processor name as the system reports it.
        logical_cpus: CPUs that this process may be scheduled on.
        memory_bytes: physical memory.
        virtual: the hypervisor or container that was noticed, or "".
    """

    name: str
    machine_id: str
    boot_id: str
    system: str
    cpu: str
    logical_cpus: int
    memory_bytes: int
    virtual: str = ""

    def fingerprint(self) -> str:
        """What must be equal for energies to be comparable: the same installation on the same processor."""
        return f"{self.machine_id or self.name}/{self.cpu}/{self.logical_cpus}"
