"""`negawatt estimate` and `negawatt config` on the command line."""

from __future__ import annotations

import json

import pytest

from negawatt.cli import config as config_command
from negawatt.cli import estimate as estimate_command
from negawatt.core.errors import UsageError
from negawatt.hardware import site


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """A configuration folder of the test's own, and no zone in the environment."""
    path = tmp_path / "config.toml"
    monkeypatch.setattr(site, "config_path", lambda: path)
    monkeypatch.delenv("NEGAWATT_ZONE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return path


@pytest.fixture
def run(capsys):
    def run(*args, of=estimate_command):
        of.command.main(list(args), prog_name="negawatt", standalone_mode=False)
        return capsys.readouterr()

    return run


def test_without_a_zone_it_prints_energy_and_how_to_give_it(run):
    """No zone: kWh only, and a sentence how to give the zone."""
    out = run("--flops", "3e21", "--gpu", "H100 SXM", "--gpus", "8").out
    assert "3e21 flop on 8 × H100 SXM" in out
    assert "MWh" in out
    assert "no zone is known. Give --zone FR" in out
    assert "CO2e)" not in out
    assert "of the width is due to utilisation: narrow it with --utilisation LOW..HIGH." in out


def test_with_a_zone_carbon_and_money_carry_year_and_source(run):
    """Both lines name the country, the year and the source."""
    out = run("--flops", "3e21", "--gpu", "H100 SXM", "--zone", "FR").out
    assert "gCO2e/kWh, France 2024, life-cycle, Ember through Our World in Data, CC BY 4.0." in out
    assert "EUR/kWh, France 2024, Eurostat nrg_pc_205" in out


def test_the_configured_site_is_used(run, config):
    """What `config set` keeps is what the estimate uses, and the flag comes before it."""
    run("set", "zone", "de", of=config_command)
    run("set", "pue", "1.3", of=config_command)
    assert json.loads(run("show", "--json", of=config_command).out) == {
        "path": str(config),
        "site": {"zone": "DE", "pue": 1.3},
    }
    out = run("--hours", "1", "--gpu", "L4").out
    assert "Germany 2024" in out
    assert "given by the configuration file" in out
    assert "France 2024" in run("--hours", "1", "--gpu", "L4", "--zone", "FR").out


def test_config_show_says_when_nothing_is_kept(run):
    """An empty configuration is told on stderr, with what to type."""
    shown = run("show", of=config_command)
    assert shown.out == ""
    assert "negawatt config set zone FR" in shown.err


def test_json_has_ranges_assumptions_and_what_dominates(run):
    """The JSON holds low, central and high of everything, and every assumption with its source."""
    found = json.loads(
        run("--tokens", "1e9", "--params", "70B", "--gpu", "H100 SXM", "--gpus", "4", "--zone", "NO", "--json").out
    )
    for name in ("machine_j", "site_j", "time_s", "carbon_g", "cost"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert all(assumption["source"] for assumption in found["assumptions"])
    assert found["widths"][0]["name"] == "batch"
    assert found["currency"] == "EUR"


def test_serving_with_all_that_is_known_is_narrow(run):
    """With batch, prompts and replies given, what is left is the model's own error."""
    told = ("--batch", "64", "--prompt-tokens", "3e8", "--reply-tokens", "500", "--host-w", "600", "--pue", "1.1")
    args = ("--tokens", "1e9", "--params", "70B", "--gpu", "H100 SXM", "--gpus", "4", *told, "--json")
    found = json.loads(run(*args).out)
    assert found["site_j"]["high"] / found["site_j"]["low"] < 3.5
    assert [width["name"] for width in found["widths"]] == ["model error"]


def test_training_tokens_are_six_flop_per_parameter(run):
    """Tokens to train on and the flop that they stand for give the same estimate."""
    machine = ("--gpu", "A100 SXM 80GB", "--json")
    tokens = json.loads(run("--train-tokens", "1B", "--params", "1B", *machine).out)
    flop = json.loads(run("--flops", "6e18", *machine).out)
    assert tokens == flop


def test_the_devices_are_listed(run):
    """The table shows every device; its JSON also has the addresses."""
    assert "MI300X" in run("--list-gpus").out
    listed = json.loads(run("--list-gpus", "--json").out)
    assert all(device["url"].startswith("https://") for device in listed)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--flops", "1e18"], "no --gpu"),
        (["--gpu", "L4"], "no work given"),
        (["--gpu", "L4", "--flops", "1", "--hours", "1"], "--flops and --hours given"),
        (["--gpu", "L4", "--tokens", "1e6"], "no --params"),
        (["--gpu", "L4", "--tokens", "many", "--params", "1B"], "--tokens many"),
        (["--gpu", "L4", "--tokens", "1e6", "--params", "1B", "--active-params", "2B"], "2e"),
        (["--gpu", "L4", "--tokens", "1e6", "--params", "1B", "--experts", "8"], "--experts 8/128"),
        (["--gpu", "L4", "--hours", "1", "--batch", "3"], "--batch with --hours"),
        (["--gpu", "L4", "--flops", "1e18", "--utilisation", "40"], "faster than the peak"),
        (["--gpu", "L4", "--hours", "1", "--load", "1.5"], "--load 1.5"),
        (["--gpu", "L4", "--hours", "1", "--pue", "0.8"], "--pue 0.8"),
        (["--gpu", "L4", "--hours", "1", "--zone", "XX"], "no zone 'XX'"),
        (["--gpu", "L4", "--hours", "1", "--price", "0.1"], "without its currency"),
        (["--gpu", "L4", "--hours", "1", "--currency", "USD"], "--currency without --price"),
        (["--gpu", "L4", "--hours", "1", "--bits", "8"], "--bits with --hours"),
        (["--gpu", "L4", "--hours", "1e308"], "--hours 1e308"),
        (["--gpu", "L4", "--hours", "1", "--host-w", "1e300"], "beyond any machine"),
        (["--gpu", "L4", "--tokens", "1e6", "--params", "8"], "did you mean --params 8B"),
        (["--gpu", "L50S", "--hours", "1"], "did you mean 'L40S'"),
    ],
)
def test_what_cannot_be_understood_says_what_to_type(run, args, message):
    """Each mistake is a usage error in three parts."""
    with pytest.raises(UsageError, match=message) as caught:
        run(*args)
    assert caught.value.why
    assert caught.value.fix


def test_the_largest_work_is_still_printed(run):
    """Whatever is accepted can be printed: no number leaves the range of floats."""
    work = ("--flops", "9e39", "--gpu", "L4", "--gpus", "1000000000", "--pue", "9e39", "--zone", "FR")
    assert "inf" not in run(*work).out
    assert json.loads(run(*work, "--json").out)["site_j"]["high"] > 1e60


def test_config_unset_forgets_one_setting(run, config):
    """A setting that is no longer true can be taken out again, and the others stay."""
    run("set", "zone", "FR", of=config_command)
    run("set", "pue", "1.3", of=config_command)
    run("unset", "zone", of=config_command)
    assert json.loads(run("show", "--json", of=config_command).out)["site"] == {"pue": 1.3}
    assert "no zone is known" in run("--hours", "1", "--gpu", "L4").out
    with pytest.raises(UsageError, match="zone is not kept"):
        run("unset", "zone", of=config_command)
