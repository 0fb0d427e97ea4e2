"""Shell commands as a workload: templates in, JSON lines out, and every mistake in the TOML told."""

from __future__ import annotations

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.trial import Role
from negawatt.core.workload import Phase, Split
from negawatt.search.command import read_toml

HEAD = '[workload]\nname="s"\nunit="u"\nquality="q"\n'
LINE = """echo '{{"work": %s, "quality": %s, "split": "%s"}}' >> $NEGAWATT_PROGRESS"""
GOOD = f"""{HEAD}
[train]
command = '''
finish() {{{{ echo '{{{{"quality": '$1', "split": "selection"}}}}' >> $NEGAWATT_PROGRESS; }}}}
trap "echo saved > {{state}}/model; finish 0.91; exit 0" TERM
for i in 1 2 3 4 5 6; do
  echo '{{{{"work": {{batch_size}}, "quality": 0.'$i', "split": "calibration"}}}}' >> $NEGAWATT_PROGRESS
  sleep 0.1
done
echo saved > {{state}}/model; finish 0.9
'''
stop_signal = "TERM"
[train.knobs.batch_size]
default = 10
choices = [10, 20]
[infer]
command = '''test -f {{state}}/model && {LINE % (5, 0.8, "report")}'''
"""
KNOB = f'{HEAD}[train]\ncommand="x {{b}}"\n[train.knobs.b]\n'


@pytest.fixture
def toml(tmp_path):
    """Write a negawatt.toml."""

    def toml(text: str):
        path = tmp_path / "negawatt.toml"
        path.write_text(text)
        return path

    return toml


def test_training_and_inference_by_shell(bench, toml, as_is, tmp_path):
    """Choices reach the command, work and quality come back, and the model folder is handed to inference."""
    on = bench(toml(GOOD))
    ready = on.ready()
    train = on.trial(
        as_is(ready, batch_size=20), split=Split.SELECTION, seed=0, role=Role.SEARCH, save_to=tmp_path / "m"
    )
    assert (train.measurement.samples, train.measurement.quality) == (120.0, 0.9)
    infer = on.trial(as_is(ready, Phase.INFER), split=Split.REPORT, seed=0, role=Role.SEARCH, load_from=tmp_path / "m")
    assert (infer.measurement.work_units, infer.measurement.quality) == (5.0, 0.8)


def test_a_command_that_is_stopped_early_saves_its_model(bench, toml, as_is, tmp_path):
    """The stop signal ends training at the target, and what the command does then still counts."""
    on = bench(toml(GOOD))
    trial = on.trial(
        as_is(on.ready(), early_stopping="target+0"),
        split=Split.SELECTION, seed=0, role=Role.SEARCH, save_to=tmp_path / "m",
    )  # fmt: skip
    assert trial.measurement is not None, trial.error
    assert (trial.measurement.samples, trial.measurement.quality) == (50.0, 0.91)
    assert (tmp_path / "m" / "model").exists()


@pytest.mark.parametrize(
    ("command", "kind", "says"),
    [
        ("exit 7", "bad-result", "exit code 7"),
        ("kill -9 $$", "bad-result", "SIGKILL"),
        ("echo not-json >> $NEGAWATT_PROGRESS", "bad-result", "not-json"),
        ("echo '{{\"work\": 1}}' >> $NEGAWATT_PROGRESS", "bad-result", "no quality"),
        ('echo \'{{"work": 1, "quality": NaN}}\' >> $NEGAWATT_PROGRESS', "bad-result", "nan"),
        ('echo \'{{"work": 1, "split": "test"}}\' >> $NEGAWATT_PROGRESS', "bad-result", "'test'"),
        ("true", "bad-result", "0 samples"),
        ("sleep 30", "hung", "did not end within"),
    ],
)
def test_a_command_that_fails_is_a_recorded_trial(run, toml, command, kind, says):
    """Exit codes, signals, bad lines, missing quality, no work and hangs each name themselves."""
    head = '[workload]\nname="s"\nunit="u"\nquality="q"\n[train]\n'
    trial = run(toml(f"{head}command = '''{command}'''"), limit_s=1.5)
    assert (trial.error.kind, says in trial.error.message) == (kind, True), trial.error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[workload", "not valid TOML"),
        ("", r"no table \[workload\]"),
        ('[workload]\nname="a"\nunit="u"\nquality="q"', "neither"),
        ('[workload]\nname="a"\nunit="u"\n[train]\ncommand="x"', "has no 'quality'"),
        ('[workload]\nname="a"\nunit="u"\nquality=1\n[train]\ncommand="x"', "quality is not text"),
        ('[workload]\nname="a"\nunit="u"\nquality="q"\n[train]\ncommand="x {lr}"', r"uses \{lr\}, which is no knob"),
        ('[workload]\nname="a"\nunit="u"\nquality="q"\n[train]\ncommand="x {"', "literal braces|expected"),
        ('[workload]\nname="a"\nunit="u"\nquality="q"\n[train]\ncommand="x"\nstopsignal="TERM"', "unknown key"),
        ('[workload]\nname="a"\nunit="u"\nquality="q"\n[train]\ncommand="x"\nstop_signal="BYE"', "stop_signal"),
        ('[workload]\nname="a"\nunit="u"\nquality="q"\n[train]\ncommand="x"\n[serve]\n', r"unknown table \[serve\]"),
        (
            '[workload]\nname="a"\nunit="u"\nquality="q"\n[train]\ncommand="x"\n[train.knobs.b]\ndefault=1\nchoices=[1]',
            "never uses its knob",
        ),
        (HEAD + "[train]\ncommand='x'\n[infer]\nenv=5", "command"),
        ("train = 3\n" + HEAD, "write it as a table"),
        (HEAD + '[train]\ncommand="x"\nenv=5', "env = 5"),
        (KNOB.replace("{b}", "{b:>3}") + "default=1\nchoices=[1]", "plain names"),
        (HEAD + '[train]\ncommand="x"\nstop_signal="KILL"', "stop_signal"),
        (KNOB + "default='1'\nchoices='12'", "as lists"),
        (KNOB + "default=1\nchoices=[2]", "not among"),
        (
            KNOB + "default=[1]\nchoices=[[1]]",
            "text, numbers",
        ),
    ],
)
def test_mistakes_in_the_toml(toml, text, says):
    """Each mistake is a usage error that names the place."""
    with pytest.raises(UsageError, match=says):
        read_toml(toml(text))


def test_values_are_quoted_for_the_shell(run, toml):
    """A choice with spaces and quotes arrives as one word."""
    trial = run(
        toml(
            f"{HEAD}[train]\ncommand = '''test {{word}} = \"it's two\" && {LINE % (1, 1, 'selection')}'''\n"
            '[train.knobs.word]\ndefault = "it\'s two"\nchoices = ["it\'s two"]'
        )
    )
    assert trial.measurement is not None, trial.error
