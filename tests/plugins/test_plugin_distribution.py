"""A plug-in distribution of one file is found, keeps the shipped contracts, and cannot do silent harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = '''
"""A sensor, a lever and a placement in one file."""
import os
import time
from contextlib import contextmanager

from negawatt.core.errors import UsageError
from negawatt.core.lever import Choice, LeverInfo, Order
from negawatt.core.placement import Outcome, PlacementChoice, PlacementInfo
from negawatt.core.reading import Reading, SensorInfo, Source
from negawatt.core.workload import Phase


class Plug:
    info = SensorInfo(name="tiny-plug", source=Source.SAMPLED, measures="the wall", evidence="the plug's manual")
    scope = "wall"
    period_s = 1.0

    def available(self, host):
        return None

    def open(self):
        return [self]

    def snapshot(self):
        return time.perf_counter()

    def reading(self, start, end):
        return Reading(scope=self.scope, energy_j=42.0 * (end - start), source=Source.SAMPLED, sensor="tiny-plug",
                       random_sd_j=0.0, gain_sd_fraction=0.01, offset_sd_w=0.5)


class Nice:
    info = LeverInfo(name="tiny-env", summary="an environment variable", phases=(Phase.INFER,), order=Order.HOST,
                     requires="nothing", evidence="none: it is an example")

    def available(self, host):
        return None

    def choices(self, workload):
        return [Choice(lever="tiny-env", phase=Phase.INFER, value=v, naive=v == "off") for v in ("off", "on")]

    @contextmanager
    def applied(self, workload, choice, context):
        os.environ["TINY"] = choice.value
        try:
            yield workload
        finally:
            del os.environ["TINY"]


class Later:
    info = PlacementInfo(name="tiny-later", summary="now or a little later", evidence="none: it is an example")

    def choices(self, job):
        return [PlacementChoice(placement="tiny-later", site=s.name, start_s=t) for s in job.sites for t in (0.0, 9.0)]

    def outcome(self, job, choice):
        if choice not in self.choices(job):
            raise UsageError(f"{choice}", "it was not offered", "use one of choices(job)")
        site = next(s for s in job.sites if s.name == choice.site)
        energy_j = job.energy_j * site.pue.value if site.pue else None
        return Outcome(choice=choice, site_energy_j=energy_j, carbon_g=None, cost=None, currency="",
                       delay_s=choice.start_s, basis=("declared PUE",))


sensor, lever, placement = Plug(), Nice(), Later()
'''

CONTRACTS = """
import tiny
from negawatt.testing import LeverContract, PlacementContract, SensorContract


class Work:
    name, unit, quality, knobs = "work", "item", "accuracy", ()

    def predictor(self, params, state):
        return list

    def requests(self, split):
        return [1, 2]

    def score(self, split, answers):
        return 1.0


class TestPlug(SensorContract):
    def make(self):
        return tiny.sensor


class TestNice(LeverContract):
    def make(self):
        return tiny.lever

    def workload(self):
        return Work()


class TestLater(PlacementContract):
    def make(self):
        return tiny.placement
"""

LIST = """
import json
from negawatt.core import registry

print(json.dumps({
    kind: {"members": sorted(found.members), "broken": {b.name: [b.distribution, b.reason] for b in found.broken}}
    for kind, found in (
        ("sensors", registry.sensors()), ("levers", registry.levers()), ("placements", registry.placements()))
}))
"""


def distribution(site: Path, name: str, entry_points: str, files: dict[str, str] | None = None) -> None:
    """Write a distribution as an installer would: its files, and a .dist-info with METADATA and entry points."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for file, text in (files or {}).items():
        (site / file).write_text(text)


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that has the folder on its path."""
    environ = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], env=environ, cwd=site, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the one-file distribution `tiny` in it."""
    entries = "".join(
        f"[negawatt.{kind}s]\n{name} = tiny:{kind}\n"
        for kind, name in (("sensor", "tiny-plug"), ("lever", "tiny-env"), ("placement", "tiny-later"))
    )
    distribution(tmp_path, "tiny", entries, {"tiny.py": PLUGIN})
    return tmp_path


def test_all_three_are_found(site: Path) -> None:
    """The registry finds the sensor, the lever and the placement beside the built-ins."""
    done = python(site, "-c", LIST)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"tiny-plug", "rapl", "nvidia", "cpu-model"} <= set(found["sensors"]["members"])
    assert "tiny-env" in found["levers"]["members"]
    assert "tiny-later" in found["placements"]["members"]
    assert not [name for kind in found.values() for name in kind["broken"] if name.startswith("tiny")]


def test_the_shipped_contract_tests_pass_on_it(site: Path) -> None:
    """A plug-in author's test file of three short classes passes, with warnings as errors."""
    (site / "test_tiny.py").write_text(CONTRACTS)
    (site / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_tiny.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "18 passed" in done.stdout


def test_the_meter_uses_its_sensor(site: Path) -> None:
    """`negawatt.meter` measures with a sensor that a plug-in brought."""
    code = (
        "import negawatt, time\n"
        "with negawatt.meter('x', sensors=['tiny-plug']) as m: time.sleep(0.05)\n"
        "print(m.source, m.energy_j / m.time_s)"
    )
    done = python(site, "-c", code)
    assert done.returncode == 0, done.stderr
    source, power_w = done.stdout.split()
    assert source == "sampled"
    assert float(power_w) == pytest.approx(42.0, rel=0.1)


def test_two_distributions_with_one_name_are_an_error(site: Path) -> None:
    """A second distribution that registers the same name raises UsageError that names both."""
    distribution(site, "rival", "[negawatt.sensors]\ntiny-plug = rival:sensor\n", {"rival.py": PLUGIN})
    code = (
        "from negawatt.core import registry\nfrom negawatt.core.errors import UsageError\n"
        "try: registry.sensors()\nexcept UsageError as error: print(error)"
    )
    done = python(site, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "two distributions register 'tiny-plug'" in done.stdout
    assert "rival" in done.stdout
    assert "pip uninstall" in done.stdout


@pytest.mark.parametrize(
    ("entry", "module", "reason"),
    [
        ("bad = bad:sensor", "raise RuntimeError('no such device library')", "RuntimeError: no such device library"),
        ("bad = bad:absent", "", "AttributeError"),
        ("bad = bad_absent:sensor", "", "ModuleNotFoundError"),
        ("bad = bad:sensor", "sensor = object()", "is not a Sensor object"),
        ("bad = tiny:sensor", "", "info.name is 'tiny-plug'"),
    ],
)
def test_a_broken_plugin_is_listed_and_skipped(site: Path, entry: str, module: str, reason: str) -> None:
    """A plug-in that cannot be loaded is listed as Broken with its reason, and the others work on."""
    distribution(site, "bad", f"[negawatt.sensors]\n{entry}\n", {"bad.py": module})
    done = python(site, "-c", LIST)
    assert done.returncode == 0, done.stderr
    sensors = json.loads(done.stdout)["sensors"]
    assert "tiny-plug" in sensors["members"]
    assert "bad" not in sensors["members"]
    where, why = sensors["broken"]["bad"]
    assert where == "bad"
    assert reason in why
