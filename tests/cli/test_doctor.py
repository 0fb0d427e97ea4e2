"""`negawatt doctor` says what works here, why the rest does not, and what to type."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from negawatt.cli import main
from negawatt.core import registry
from negawatt.core.errors import NeedsPrivilegeError
from negawatt.core.reading import SensorInfo, Source

ENTRY = [sys.executable, "-c", "import sys; from negawatt.cli import main; sys.exit(main())"]


class FakeSensor:
    """Stands in for hardware that is not in this machine."""

    def __init__(self, name, *, reason=None, error=None):
        self.info = SensorInfo(name=name, source=Source.COUNTER, measures="[bold]joules[/bold]", evidence="a test")
        self.reason = reason
        self.error = error

    def available(self, host):
        return self.reason

    def open(self):
        if self.error:
            raise self.error
        return []


@pytest.fixture(autouse=True)
def ledger_path(tmp_path, monkeypatch):
    monkeypatch.setenv("NEGAWATT_LEDGER", str(tmp_path / "ledger.sqlite"))
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def hardware(monkeypatch):
    """Replace the sensors of this machine by fakes."""

    def install(*sensors, broken=()):
        found = registry.Found(members={s.info.name: s for s in sensors}, broken=broken)
        monkeypatch.setattr(registry, "sensors", lambda: found)

    return install


def doctor(*options, code=0):
    with pytest.raises(SystemExit, match=str(code)):
        main(["doctor", *options])


def test_json_lists_everything_that_is_registered(capsys, ledger_path):
    """Every sensor, lever and placement is there, ready or with a reason, and the ledger's path too."""
    doctor("--json")
    found = json.loads(capsys.readouterr().out)
    for group, members in (
        ("sensors", registry.sensors()),
        ("levers", registry.levers()),
        ("placements", registry.placements()),
    ):
        assert {part["name"] for part in found[group]} == {*members.members, *(b.name for b in members.broken)}
        for part in found[group]:
            assert part["state"] in ("ready", "unavailable", "broken")
            assert (part["state"] == "ready") == (part["reason"] == "")
    assert found["host"]["logical_cpus"] >= 1
    assert (found["ledger"], found["ledger_fault"]) == (str(ledger_path), "")
    assert not ledger_path.exists()


def test_the_table_is_plain_text():
    """Into a pipe, the table holds no escape sequences, nor colours where they are forced but NO_COLOR is set."""
    for extra in ({}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}):
        ended = subprocess.run(
            [*ENTRY, "doctor"], env={**os.environ, **extra}, capture_output=True, text=True, check=True
        )
        assert "cpu-model" in ended.stdout
        assert "Results are kept in" in ended.stdout
        assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", ended.stdout)
        assert extra or "\x1b" not in ended.stdout


def test_without_a_sensor_it_exits_with_3(capsys, hardware):
    """Where nothing can be metered, every reason is shown and the exit code is 3."""
    denied = NeedsPrivilegeError("counter not readable", "no joules", "type `sudo chmod a+r counter`")
    broken = registry.Broken(name="theirs", distribution="their-sensors", reason="ImportError: no module")
    hardware(
        FakeSensor("absent", reason="no chip; type `modprobe chip`"),
        FakeSensor("denied", error=denied),
        FakeSensor("empty"),
        broken=(broken,),
    )
    doctor(code=3)
    out = " ".join(capsys.readouterr().out.split())
    assert "absent unavailable no chip; type `modprobe chip`" in out
    assert "denied unavailable counter not readable; type `sudo chmod a+r counter`" in out
    assert "empty unavailable it found nothing to read" in out
    assert "theirs broken ImportError: no module (from their-sensors)" in out
    assert "Nothing can be metered here" in out


def test_a_sensor_that_raises_is_shown_as_broken(capsys, hardware):
    """An unexpected error of a foreign sensor is shown beside it and does not stop the others."""
    hardware(FakeSensor("wild", error=ZeroDivisionError("oops")), FakeSensor("absent", reason="no chip"))
    doctor("--json", code=3)
    sensors = {part["name"]: part for part in json.loads(capsys.readouterr().out)["sensors"]}
    assert (sensors["wild"]["state"], sensors["wild"]["reason"]) == ("broken", "ZeroDivisionError: oops")
    assert sensors["absent"]["state"] == "unavailable"


def test_a_ledger_that_cannot_be_written_is_shown(capsys, monkeypatch, tmp_path):
    """The doctor says why results would not be kept and what to type."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEGAWATT_LEDGER", str(tmp_path / "file" / "ledger.sqlite"))
    doctor()
    out = " ".join(capsys.readouterr().out.split())
    assert "cannot make the ledger" in out
    assert "NEGAWATT_LEDGER=PATH" in out
