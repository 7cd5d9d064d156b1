import datasets
import pytest

from obliteratus.errors import PromptError
from obliteratus.prompts import hub
from obliteratus.prompts.load import load_prompts

ROWS = [{"goal": "first", "target": "x"}, {"goal": "second", "target": "y"}]


@pytest.fixture
def hub_has(monkeypatch):
    def install(rows=ROWS, splits=("train",)):
        def load(name, *, split, streaming):
            assert (name, streaming) == ("owner/name", True)
            assert split in splits
            return iter(rows)

        monkeypatch.setattr(datasets, "get_dataset_split_names", lambda _name: list(splits))
        monkeypatch.setattr(datasets, "load_dataset", load)

    return install


def texts(asked):
    return [prompt.text for prompt in load_prompts(asked)]


def test_the_only_split_and_a_known_column_are_found(hub_has):
    hub_has()
    assert texts("hub:owner/name") == ["first", "second"]


def test_split_and_column_are_chosen_by_name(hub_has):
    hub_has(splits=("train", "test"))
    assert texts("hub:owner/name:test:target") == ["x", "y"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("hub:name", r"does not name a data set. Write hub:owner/name"),
        ("hub:owner/name", r"has the splits train, test. Choose one: hub:owner/name:train"),
        ("hub:owner/name:tset", r"no split 'tset'. Did you mean 'test'"),
        ("hub:owner/name:test:gaol", r"no column 'gaol'. Did you mean 'goal'"),
    ],
)
def test_wrong_names_are_refused_with_the_right_ones(hub_has, asked, message):
    hub_has(splits=("train", "test"))
    with pytest.raises(PromptError, match=message):
        load_prompts(asked)


def test_more_rows_than_can_be_used_are_refused(hub_has, monkeypatch):
    monkeypatch.setattr(hub, "MOST_ROWS", 1)
    hub_has()
    with pytest.raises(PromptError, match=r"more than 1 rows"):
        load_prompts("hub:owner/name")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'owner/name' on the Hub"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' is a gated dataset"),
        ValueError("Config name is missing."),
    ],
)
def test_what_the_hub_refuses_is_one_clear_error(monkeypatch, error):
    def fail(_name):
        raise error

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(PromptError, match=r"cannot be read from the Hub: .*hf auth login"):
        load_prompts("hub:owner/name")
