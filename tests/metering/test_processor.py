"""Processor: rated power from a name, sockets and threads, and an honest guess where the name says little."""

from __future__ import annotations

import csv
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from negawatt.core.host import Host
from negawatt.metering import processor
from negawatt.metering.processor import FAMILIES, rating, recognise, shortened

HOST = Host(
    name="here", machine_id="m", boot_id="b", system="Linux 6", cpu="", logical_cpus=8, memory_bytes=1, virtual=""
)
TABLE = Path(processor.__file__).with_name("data") / "processors.csv"


def rows() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sockets(root: Path, ids: str) -> Path:
    """A file system whose logical CPUs are in these packages."""
    for cpu, package in enumerate(ids):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
    return root


@pytest.mark.parametrize(
    ("name", "rated_w", "threads"),
    [
        ("Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz", 240.0, 48),
        ("Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz", 145.0, 36),
        ("Intel(R) Xeon(R) CPU E3-1240 V2 @ 3.40GHz", 69.0, 8),
        ("AMD EPYC 7763 64-Core Processor", 280.0, 128),
        ("AMD EPYC 7452 32-Core Processor", 155.0, 64),
        ("AMD Ryzen Threadripper 1950X 16-Core Processor", 180.0, 32),
        ("13th Gen Intel(R) Core(TM) i9-13900K", 125.0, None),
        ("AMD Ryzen 7 PRO 4750U with Radeon Graphics", 15.0, None),
        ("AMD EPYC", None, None),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", None, None),
        ("Apple M2", None, None),
        ("", None, None),
    ],
)
def test_names_as_systems_report_them(name: str, rated_w: float | None, threads: int | None) -> None:
    """A name from /proc/cpuinfo finds its row, and a hidden model finds none."""
    assert rating(name) == (rated_w, threads)


def test_every_name_of_the_table_is_found() -> None:
    """Names of the table are already short, unique and within what a processor can draw."""
    names = [row["name"] for row in rows()]
    assert len(names) == len(set(names)) > 3000
    assert all(shortened(name) == name for name in names)
    assert all(1 <= float(row["rated_w"]) <= 700 for row in rows())


def test_family_figures_follow_from_the_table() -> None:
    """Watts per thread of a hidden model are the geometric mean of the table's rows, and their spread its deviation."""
    known = {row["name"]: float(row["rated_w"]) / int(row["threads"]) for row in rows() if row["threads"]}
    serving = re.compile(r"xeon (platinum|gold|silver)|xeon e5-.* v[34]$|xeon 6\d{3}[pe]")
    for family, chosen in (
        ("EPYC", [w for name, w in known.items() if "epyc" in name]),
        ("Xeon", [w for name, w in known.items() if serving.search(name)]),
        ("unknown", list(known.values())),
    ):
        logs = [math.log(w) for w in chosen]
        _, thread_w, log_sd = FAMILIES[family]
        assert math.exp(statistics.mean(logs)) == pytest.approx(thread_w, rel=0.02)
        assert statistics.stdev(logs) == pytest.approx(log_sd, abs=0.02)


def test_on_bare_metal_whole_sockets_count(tmp_path: Path) -> None:
    """Two sockets have twice the rated power, with hyper-threads on or off."""
    host = replace(HOST, cpu="Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz")
    for i, ids in enumerate(("00001111", "01")):
        found = recognise(host, len(ids), sockets(tmp_path / str(i), ids))
        assert (found.rated_w, found.rated_sd_fraction, found.flags) == (480.0, 0.0, ())


def test_a_container_has_its_host_s_sockets_and_a_guest_its_share(tmp_path: Path) -> None:
    """A container changes nothing; a virtual machine gets its logical CPUs' part of the processor."""
    host = replace(HOST, cpu="AMD EPYC 7763 64-Core Processor")
    root = sockets(tmp_path, "0")
    assert recognise(replace(host, virtual="docker"), 8, root).rated_w == 280.0
    for virtual in ("qemu", "docker in qemu"):
        found = recognise(replace(host, virtual=virtual), 8, root)
        assert found.rated_w == pytest.approx(280.0 * 8 / 128)
        assert "8 of 128 threads" in found.basis
        assert found.flags == ()


@pytest.mark.parametrize(
    ("name", "virtual", "family"),
    [
        ("AMD EPYC", "qemu", "EPYC"),
        ("Intel Xeon Processor (Skylake, IBRS)", "kvm", "Xeon"),
        ("Intel(R) Xeon(R) Platinum 8568Y+", "kvm", "Xeon"),  # in the table, but without its threads
        ("aarch64 implementer 0x41 part 0xd0c", "", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_a_hidden_model_gets_its_family_s_range(name: str, virtual: str, family: str, tmp_path: Path) -> None:
    """Where the model is hidden the family's watts per thread are taken, with their spread, and a flag says so."""
    found = recognise(replace(HOST, cpu=name, virtual=virtual), 8, tmp_path)
    assert found.rated_w == pytest.approx(8 * FAMILIES[family][1])
    assert found.rated_sd_fraction == pytest.approx(FAMILIES[family][2], rel=0.2)
    assert len(found.flags) == 1
    assert (name or "no name") in found.flags[0]
