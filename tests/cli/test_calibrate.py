"""`negawatt calibrate` makes load steps, logs them, and keeps a line to the wall with the error it leaves."""

from __future__ import annotations

import json
import os
import resource
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from negawatt.cli import main
from negawatt.cli.calibrate import _only_estimates
from negawatt.core.codec import from_json
from negawatt.core.errors import UsageError
from negawatt.hardware.host import this_host
from negawatt.metering.burn import burning
from negawatt.metering.calibration import Calibration
from negawatt.metering.logs import read_metered, write_metered

MODEL = ["--sensor", "cpu-model"]
POINTS = ["--point", "2=40", "--point", "3=55", "--point", "4=72"]
START_S = 1_750_000_000.0


@pytest.fixture(autouse=True)
def kept_in(tmp_path, monkeypatch):
    path = tmp_path / "calibration.json"
    monkeypatch.setenv("NEGAWATT_CALIBRATION", str(path))
    return path


def metered_log(path: Path, fingerprint: str) -> None:
    """Three steps of a minute at 20, 50 and 80 W."""
    rows, energy_j = [], 0.0
    for step, power_w in (("idle", 20.0), ("50%", 50.0), ("100%", 80.0)):
        for _ in range(60):
            rows.append((START_S + len(rows), energy_j, step))
            energy_j += power_w
    write_metered(path, fingerprint, ["cpu"], ["cpu-model"], rows)


def wall_log(path: Path, ahead_s: float) -> None:
    """The same at the wall, 30 W and 10 % more, by a clock that is ahead."""
    lines = ["time,power"]
    lines += [f"{START_S + i + ahead_s},{30 + 1.1 * (20, 50, 80)[min(2, max(0, i // 60))]}" for i in range(-30, 210)]
    path.write_text("\n".join(lines) + "\n")


def test_typed_points_are_fitted_kept_and_shown(capsys, kept_in):
    """Three typed points give the line, every level predicted from the others, and `show` has it."""
    assert main(["calibrate", *POINTS, *MODEL]) == 0
    out, err = capsys.readouterr()
    assert "wall = 16.0 x metered + 7.67 W" in out
    assert "3.2\u00a0% mean error at a load left out (3\u00a0points at 3\u00a0levels)" in out
    assert str(kept_in) in err
    assert main(["calibrate", "show"]) == 0
    assert "for cpu by cpu-model on" in capsys.readouterr().out
    assert main(["calibrate", "show", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["calibrations"]
    assert from_json(Calibration, one).gain == pytest.approx(16.0)


def test_json_and_dry_run(capsys, kept_in):
    """--json prints calibration and levels, and with --dry-run nothing is kept."""
    assert main(["calibrate", *POINTS, *MODEL, "--json", "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calibration"]["fingerprint"] == this_host().fingerprint()
    assert [level["name"] for level in found["levels"]] == ["2 W", "3 W", "4 W"]
    assert found["path"] is None
    assert not kept_in.exists()
    assert main(["calibrate", "show"]) == 0
    assert "none is kept" in capsys.readouterr().err


def test_two_logs_are_aligned_and_fitted(capsys, tmp_path):
    """From a log of this host and one of the wall meter come the lag, said, and the line."""
    metered, wall = tmp_path / "metered.csv", tmp_path / "wall.csv"
    metered_log(metered, this_host().fingerprint())
    wall_log(wall, 12.0)
    assert main(["calibrate", "--csv", str(wall), "--metered", str(metered), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "ahead of this host's" in err
    calibration = json.loads(out)["calibration"]
    assert calibration["lag_s"] == pytest.approx(12.0, abs=1.0)
    assert calibration["gain"] == pytest.approx(1.1, rel=0.01)
    assert calibration["offset_w"] == pytest.approx(30.0, abs=1.0)


def test_a_german_log_in_kilowatts_gives_the_same_line(capsys, tmp_path):
    """Semicolons, decimal commas, local dates and kW are understood, and what was understood is said."""
    metered, wall = tmp_path / "metered.csv", tmp_path / "wall.csv"
    metered_log(metered, this_host().fingerprint())
    lines = ["Zeit;Leistung [kW]"]
    for i in range(-30, 210):
        stamp = datetime.fromtimestamp(START_S + i, UTC) + timedelta(hours=2)
        power_kw = (30 + 1.1 * (20, 50, 80)[min(2, max(0, i // 60))]) / 1000
        lines.append(f"{stamp:%d.%m.%Y %H:%M:%S};{power_kw:.3f}".replace(".", ",").replace(",", ".", 2))
    wall.write_text("\n".join(lines) + "\n")
    assert main(["calibrate", "--csv", str(wall), "--metered", str(metered), "--utc-offset", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "'Leistung [kW]' in kW (by its header), times from 'Zeit', with decimal commas" in err
    assert json.loads(out)["calibration"]["gain"] == pytest.approx(1.1, rel=0.01)


def test_watts_that_are_kilowatts_are_not_kept(capsys, tmp_path, kept_in):
    """Kilowatts under a header without a unit give a wall far below its parts: an error, until --power-unit says so."""
    metered, wall = tmp_path / "metered.csv", tmp_path / "wall.csv"
    metered_log(metered, this_host().fingerprint())
    wall_log(wall, 0.0)
    rows = [line.split(",") for line in wall.read_text().splitlines()[1:]]
    wall.write_text("\n".join(["time,power", *(f"{t},{float(w) / 1000:.5f}" for t, w in rows)]))
    options = ["calibrate", "--csv", str(wall), "--metered", str(metered)]
    assert main(options) == 2
    err = capsys.readouterr().err
    assert "its header names no unit" in err
    assert "most often kW were read as W" in err
    assert not kept_in.exists()
    assert main([*options, "--power-unit", "kW"]) == 0
    assert "wall = 1.10 x metered" in capsys.readouterr().out


def test_estimates_above_the_wall_are_kept_only_when_asked(capsys, kept_in):
    """--below accepts a wall meter below sensors that estimate, and says so; with one that measures it is refused."""
    low = ["--point", "20=10", "--point", "50=22", "--point", "80=34"]
    assert main(["calibrate", *low, *MODEL]) == 2
    assert "`--below`" in capsys.readouterr().err
    assert main(["calibrate", *low, *MODEL, "--below"]) == 0
    assert "only estimate" in capsys.readouterr().err
    assert kept_in.exists()
    with pytest.raises(UsageError, match="--below with rapl"):
        _only_estimates(["cpu-model", "rapl"])


@pytest.mark.parametrize(
    ("walls", "code", "says"),
    [((40, 66, 80), 0, "doubtful, as it errs by 18 %"), ((30, 300, 40), 1, "nothing was kept")],
)
def test_a_line_that_errs_is_doubted_or_refused(walls, code, says, capsys, kept_in):
    """Over 10 % error there is a warning; over 50 %, exit code 1 after the table, and nothing is kept."""
    options = [
        word for metered, wall in zip((20, 30, 40), walls, strict=True) for word in ("--point", f"{metered}={wall}")
    ]
    assert main(["calibrate", *options, *MODEL]) == code
    out, err = capsys.readouterr()
    assert says in err
    assert "mean error at a load left out" in out
    assert kept_in.exists() is (code == 0)


def test_a_log_of_another_host_is_refused(capsys, tmp_path):
    """What another machine showed calibrates nothing here."""
    metered, wall = tmp_path / "metered.csv", tmp_path / "wall.csv"
    metered_log(metered, "elsewhere/CPU/8")
    wall_log(wall, 0.0)
    assert main(["calibrate", "--csv", str(wall), "--metered", str(metered)]) == 2
    assert "was made on elsewhere/CPU/8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--csv", "wall.csv"], "neither two logs nor points alone"),
        ([*POINTS, "--csv", "wall.csv", "--metered", "m.csv"], "neither two logs nor points alone"),
        (["--point", "2"], "--point 2"),
        (["--point", "2=lots"], "--point 2=lots"),
        ([*POINTS[:4], *MODEL], "2 levels"),
        (["--csv", "missing.csv", "--metered", "missing.csv"], "missing.csv cannot be read"),
        (["--csv", "w", "--metered", "m", "--utc-offset", "99"], "--utc-offset 99"),
        (["load"], "neither --out nor --ask"),
        (["record", "--out", "/nowhere/m.csv", "--seconds", "1", *MODEL], "/nowhere/m.csv cannot be written"),
    ],
)
def test_what_is_not_enough_is_a_usage_error(options, says, capsys):
    """Exit code 2, with what was got and what to type."""
    assert main(["calibrate", *options]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "what to do:" in err


def test_record_logs_this_host(tmp_path, capsys):
    """`record` writes time, energy and what it metered."""
    out = tmp_path / "metered.csv"
    assert main(["calibrate", "record", "--out", str(out), "--seconds", "1", "--every", "0.2", *MODEL]) == 0
    log = read_metered(out)
    assert len(log.trace.times_s) >= 4
    assert (log.fingerprint, log.scopes, log.sensors) == (this_host().fingerprint(), ("cpu",), ("cpu-model",))
    assert log.spans == ()
    assert abs(log.trace.times_s[-1] - time.time()) < 60
    assert log.trace.mean_w(log.trace.times_s[0], log.trace.times_s[-1]) > 0
    assert "rows in" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="CPU time of children is read as Linux gives it")
def test_burning_keeps_a_cpu_busy_for_its_part_of_the_time():
    """Half load on one CPU is about half a second of CPU time a second, and none is left running behind the block."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with burning(0.5, 1):
        time.sleep(1.0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 0.1 < after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.9
    with burning(0.0, 1):
        pass
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime == after.ru_utime


@pytest.mark.slow
def test_load_makes_its_steps(tmp_path):
    """`load` goes through idle to full load, and the model sees more power at each."""
    out = tmp_path / "metered.csv"
    assert main(["calibrate", "load", "--out", str(out), "--seconds", "2", "--every", "0.25", *MODEL]) == 0
    log = read_metered(out)
    assert [name for name, _, _ in log.spans] == ["idle", "25%", "50%", "75%", "100%"]
    first, *_, last = [log.trace.mean_w(begin, end) for _, begin, end in log.spans]
    assert first < last


@pytest.mark.slow
def test_load_asks_at_each_step(monkeypatch, capsys):
    """`load --ask` sets what is typed against what was metered under that load."""
    answers = iter((40.0, 50.0, 60.0, 70.0, 80.0))
    monkeypatch.setattr("click.prompt", lambda *args, **options: next(answers))
    assert main(["calibrate", "load", "--ask", "--seconds", "1", "--dry-run", "--json", *MODEL]) in (0, 1, 2)
    assert next(answers, None) is None
    out, err = capsys.readouterr()
    assert "levels" in (out or err)
