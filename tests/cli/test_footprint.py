"""`negawatt footprint`: an energy typed or recorded, its interval, and its sources."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from negawatt.cli.footprint import command
from negawatt.core.errors import UsageError
from negawatt.ledger.store import Ledger


@pytest.fixture(autouse=True)
def ledger_path(tmp_path, monkeypatch):
    monkeypatch.setenv("NEGAWATT_LEDGER", str(tmp_path / "ledger.sqlite"))
    return tmp_path / "ledger.sqlite"


def run(*words: str) -> str:
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output.replace("\u00a0", " ")


def refused(*words: str) -> UsageError:
    with pytest.raises(UsageError, match="why it matters") as caught:
        command.main(list(words), standalone_mode=False)
    return caught.value


def test_kwh_come_first_and_every_row_is_a_range():
    """The energy in kWh, then a line per equivalent with low, central and high."""
    lines = run("1287", "MWh").splitlines()
    assert lines[0].startswith("1 287 000 kWh (declared")
    (homes,) = [line for line in lines if line.startswith("years of a US home")]
    assert homes.split()[5:8] == ["119", "120", "123"]
    assert homes.endswith("official statistic")


def test_sources_are_printed_on_request():
    """--sources gives the figures, what they rest on, and an address for each."""
    text = run("3.2 kWh", "--sources")
    assert "10 500 kWh" in text
    assert text.count("https://") >= 12
    assert "https://" not in run("3.2 kWh")


def test_json_has_all_of_it():
    """The JSON carries energies in joules, amounts and sources."""
    found = json.loads(run("500", "J", "--json"))
    assert (found["energy_j"], found["low_j"], found["high_j"], found["source"]) == (500, 500, 500, "declared")
    row = next(row for row in found["equivalents"] if row["key"] == "phone_charge")
    assert row["amount"]["central"] == pytest.approx(500 / (0.019 * 3.6e6))
    assert row["grade"] == "published estimate"
    assert row["citations"][0]["url"].startswith("https://www.epa.gov/")


def test_the_last_run_with_its_error(ledger_path):
    """Without an energy: the newest run, whose 95 % interval widens every range."""
    with Ledger.open(ledger_path) as ledger:
        ledger.append("run", {"energy_sd_j": 9.9}, workload="old", energy_j=10.0, source="counter")
        ledger.append("run", {"energy_sd_j": 0.36e6}, workload="train.py", energy_j=3.6e6, source="estimated")
        ledger.append("trial", {}, workload="other", energy_j=7.0, source="counter")
    text = run()
    assert text.startswith("1 kWh (estimated; run 2, train.py, 95 % interval 0.804 kWh to 1.196 kWh)\n")
    found = json.loads(run("--json"))
    assert found["low_j"] == pytest.approx(3.6e6 - 1.96 * 0.36e6)
    home = next(row for row in found["equivalents"] if row["key"] == "home_year")["amount"]
    assert home["low"] == pytest.approx(0.804 / 10791)
    assert home["high"] == pytest.approx(1.196 / 10500)


def test_the_last_run_is_a_whole_one(ledger_path):
    """The ranks of a job are recorded behind it, and are parts of it: the job is the last run."""
    with Ledger.open(ledger_path) as ledger:
        job = ledger.append("run", {"energy_sd_j": 0.0}, workload="job", energy_j=17.7, source="counter")
        sequence = ledger.get(job).sequence
        ledger.append("run", {"energy_sd_j": 0.0, "parent": sequence}, workload="rank", energy_j=1.8, source="counter")
    assert run().startswith("17.7 J (counter; run 1, job")


def test_a_part_of_an_unknown_run_counts(ledger_path):
    """A run inside one that was not recorded is the whole of what is known."""
    with Ledger.open(ledger_path) as ledger:
        ledger.append("run", {"energy_sd_j": 0.0, "parent": "gone"}, workload="rank", energy_j=1.8, source="counter")
    assert run().startswith("1.80 J (counter; run 1, rank")


def test_a_run_by_its_number(ledger_path):
    """--run picks a record; an error that was not recorded is said to be unknown, never taken as zero in silence."""
    with Ledger.open(ledger_path) as ledger:
        number = ledger.append("campaign", {}, workload="mnist", energy_j=7.2e6, source="counter")
        ledger.append("run", {"energy_sd_j": 1.0}, energy_j=1.0, source="counter")
    assert run("--run", str(number)).startswith("2 kWh (counter; campaign 1, mnist, its error was not recorded)")


def test_nothing_to_show_is_said(ledger_path):
    """No ledger, no run, no energy, no such record: each a usage error that says what to type."""
    assert "no ledger" in refused().got
    assert not ledger_path.exists()
    with Ledger.open(ledger_path) as ledger:
        ledger.append("trial", {}, energy_j=1.0)
    assert "no run in the ledger" in refused().got
    with Ledger.open(ledger_path) as ledger:
        ledger.append("run", {})
    error = refused()
    assert "has no energy" in error.got
    assert "negawatt run -- CMD" in error.fix
    assert "no record 99" in refused("--run", "99").got


def test_an_energy_and_a_run_exclude_each_other():
    """Both at once is a usage error."""
    assert "only one of them" in refused("1 kWh", "--run", "1").why
