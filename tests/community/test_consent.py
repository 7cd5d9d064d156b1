"""Nothing is contributed unless the user said so, in the environment or in a file."""

from pathlib import Path

import pytest

from obliteratus.community.consent import DATA_SET, Consent, config_path, consent
from obliteratus.errors import UsageError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_off_is_the_default_also_on_a_space(monkeypatch) -> None:
    assert consent() == Consent("off", DATA_SET, is_named=False)
    monkeypatch.setenv("SPACE_ID", "someone/space")
    monkeypatch.setenv("SYSTEM", "spaces")
    assert consent().contribute == "off"


def test_the_file_says_what_and_where_to(config: Path) -> None:
    config.write_text('contribute = "ask"\ndata_set = "lab/runs"\n')
    assert consent() == Consent("ask", "lab/runs", is_named=True)


def test_the_environment_wins(config: Path, monkeypatch) -> None:
    config.write_text('contribute = "always"\ndata_set = "lab/runs"\n')
    monkeypatch.setenv("OBLITERATUS_CONTRIBUTE", "off")
    monkeypatch.setenv("OBLITERATUS_DATA_SET", "other/runs")
    assert consent() == Consent("off", "other/runs", is_named=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('contribute = "allways"', r"contribute in .* is 'allways'.* Did you mean 'always'"),
        ("contribute = true", r"is 'True', which is no choice"),
        ('contribut = "ask"', r"unknown key 'contribut'. Did you mean 'contribute'"),
        ('data_set = "runs"', r"'runs' names no data set of the Hub. Write owner/name"),
        ("contribute", r"is no TOML: .* Correct it or remove it"),
    ],
)
def test_a_wrong_setting_is_refused(config: Path, text: str, why: str) -> None:
    config.write_text(text)
    with pytest.raises(UsageError, match=why):
        consent()


def test_a_wrong_variable_is_named(monkeypatch) -> None:
    monkeypatch.setenv("OBLITERATUS_CONTRIBUTE", "sometimes")
    with pytest.raises(UsageError, match="OBLITERATUS_CONTRIBUTE is 'sometimes'"):
        consent()
