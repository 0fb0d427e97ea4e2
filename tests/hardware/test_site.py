"""Carbon and price of a place carry year and source, and the place is never guessed."""

from __future__ import annotations

import pytest

from negawatt.core.errors import NegawattError, UsageError
from negawatt.hardware.site import chosen, configure, configured, countries, country


@pytest.fixture
def config(tmp_path):
    return tmp_path / "negawatt" / "config.toml"


def test_every_country_has_carbon_with_year_and_source():
    """Each country's intensity names its year, kind and source, and none is a silent zero."""
    assert len(countries()) > 200
    for place in countries().values():
        assert 10 < place.intensity_gpkwh.value < 1500
        assert "life-cycle, Ember through Our World in Data, CC BY 4.0" in place.intensity_gpkwh.source
        assert any(str(year) in place.intensity_gpkwh.source for year in (2022, 2023, 2024))


def test_a_price_has_year_source_and_currency_or_is_none():
    """A price names all three; a country without a source has none."""
    priced = [place for place in countries().values() if place.price_per_kwh is not None]
    assert len(priced) > 30
    for place in priced:
        assert 0.03 < place.price_per_kwh.value < 0.4
        assert "2024" in place.price_per_kwh.source
        assert place.currency in ("EUR", "USD")
    assert countries()["CN"].price_per_kwh is None
    assert countries()["CN"].currency == ""


def test_a_zone_is_a_code_or_a_name():
    """Codes and names are found in any case, and Eurostat's and everyday codes too."""
    assert country("fr").name == country(" France ").name == "France"
    assert country("UK").code == "GB"
    assert country("EL").code == "GR"
    with pytest.raises(UsageError, match=r"no zone 'Frankreich'.*[\s\S]*did you mean 'FR' \(France\)"):
        country("Frankreich")
    for nowhere in ("", "EU"):
        with pytest.raises(UsageError, match="two-letter code"):
            country(nowhere)


def test_nothing_said_is_no_site(config):
    """Without flag, environment and file there is no site: no country is a default."""
    assert chosen({"zone": None, "pue": None}, environ={}, path=config) is None


def test_flag_before_environment_before_file(config):
    """The zone of the command line wins over NEGAWATT_ZONE, and that over the file."""
    configure("zone", "DE", config)
    assert chosen({}, environ={}, path=config).name == "Germany"
    assert chosen({}, environ={"NEGAWATT_ZONE": "PL"}, path=config).name == "Poland"
    assert chosen({"zone": "NO"}, environ={"NEGAWATT_ZONE": "PL"}, path=config).name == "Norway"


def test_what_is_kept_for_one_zone_is_not_used_for_another(config):
    """A price agreed in France does not follow a run to Sweden; given without a zone, it does."""
    configure("price_per_kwh", "0.1", config)
    configure("currency", "eur", config)
    assert chosen({"zone": "SE"}, environ={}, path=config).price_per_kwh.value == 0.1
    configure("zone", "FR", config)
    here, there = (chosen({"zone": zone}, environ={}, path=config) for zone in ("FR", "SE"))
    assert (here.price_per_kwh.value, here.currency) == (0.1, "EUR")
    assert here.price_per_kwh.source == "given by the configuration file"
    assert "Eurostat" in there.price_per_kwh.source


def test_figures_by_hand_win_over_the_table(config):
    """An intensity and a price on the command line replace those of the country."""
    site = chosen({"zone": "FR", "intensity_gpkwh": "20", "price_per_kwh": "0.08", "currency": "USD"}, {}, config)
    assert (site.intensity_gpkwh.value, site.price_per_kwh.value, site.currency) == (20, 0.08, "USD")
    assert site.intensity_gpkwh.source == "given by the command line"


def test_a_price_needs_its_currency(config):
    """Money without a currency is refused."""
    with pytest.raises(UsageError, match="without its currency"):
        chosen({"price_per_kwh": 0.1}, environ={}, path=config)


def test_configure_keeps_everything_else_in_the_file(config):
    """Comments and other tables survive; a key is replaced, not repeated."""
    config.parent.mkdir()
    config.write_text('# mine\n[site]\nzone = "FR"  # home\npue = 1.1\n\n[other]\nzone = 3\n')
    configure("pue", "1.25", config)
    configure("zone", "germany", config)
    assert config.read_text() == '# mine\n[site]\nzone = "DE"\npue = 1.25\n\n[other]\nzone = 3\n'
    assert configured(config) == {"zone": "DE", "pue": 1.25}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("zon", "FR", "did you mean zone"),
        ("zone", "Atlantis", "no zone 'Atlantis'"),
        ("pue", "0.9", "at least 1"),
        ("pue", "much", "at least 1"),
        ("pue", "120", "from 1 to 10"),
        ("price_per_kwh", "-1", "not negative"),
        ("intensity_gpkwh", "1e9", "from 0 to 10000"),
        ("currency", "€", "use a code"),
    ],
)
def test_what_cannot_be_is_not_kept(config, key, value, message):
    """An unknown key or impossible value is refused, and the file is not made."""
    with pytest.raises(UsageError, match=message):
        configure(key, value, config)
    assert not config.exists()


def test_a_broken_file_is_told(config):
    """A file that is not TOML, or holds something unknown, is an error that names it."""
    config.parent.mkdir()
    config.write_text("[site\n")
    with pytest.raises(UsageError, match=r"config\.toml"):
        configured(config)
    config.write_text("[site]\nregion = 'FR'\n")
    with pytest.raises(UsageError, match="no setting 'region'"):
        configured(config)
    config.write_text('zone = "FR"\n\n[site]\npue = 1.2\n')
    with pytest.raises(UsageError, match=r"zone stands outside of \[site\]"):
        configured(config)
    config.write_text("site = 1\n")
    with pytest.raises(UsageError, match="not a table"):
        configured(config)


def test_every_digit_is_kept(config):
    """A price is kept as typed, however many digits it has."""
    configure("price_per_kwh", "0.12345678", config)
    assert configured(config) == {"price_per_kwh": 0.12345678}


def test_a_file_written_otherwise_is_left_alone(config):
    """A layout that the editor does not foresee is refused, with the line to add by hand."""
    config.parent.mkdir()
    config.write_text('site = { zone = "FR" }\n')
    with pytest.raises(UsageError, match=r"add to it: pue = 1\.2"):
        configure("pue", "1.2", config)
    assert config.read_text() == 'site = { zone = "FR" }\n'


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    """Where the setting cannot be kept, it says so."""
    (tmp_path / "file").write_text("")
    with pytest.raises(NegawattError, match="cannot"):
        configure("zone", "FR", tmp_path / "file" / "config.toml")
