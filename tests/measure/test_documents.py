import json
import re
from pathlib import Path

import datasets
import pytest

from obliteratus.errors import MeasurementError, PromptError
from obliteratus.events import Event, Note, listening
from obliteratus.measure.documents import documents, heldout, select_text

ONE = "The first document tells of a harbour and its boats."
TWO = "The second document is about bread,\nand it goes on in a second line."
THREE = "The third document lists what a gardener does in March."


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    documents.cache_clear()


def texts(path: Path | str, most: int = 100) -> list[str]:
    return [document.text for document in documents(str(path), most)]


def test_without_a_source_they_are_those_built_in() -> None:
    assert documents(None, 200) == heldout()


def test_fewer_of_those_built_in_are_of_every_genre() -> None:
    """As many first ones would all be of one genre."""
    some, every = documents(None, 6), heldout()
    assert len(some) == len({document.genre for document in every}) == 6
    assert {document.genre for document in some} == {document.genre for document in every}
    assert len({document.genre for document in every[:6]}) == 1


def passages(text: str, words: int = 8) -> set[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[start : start + words]) for start in range(len(found) - words + 1)}


def test_the_documents_that_choose_a_strength_are_not_those_that_are_reported() -> None:
    chosen, reported = select_text(), heldout()
    assert len(chosen) == len({document.text for document in chosen}) == 16
    assert all(90 <= len(document.text.split()) <= 140 for document in chosen)
    assert {document.genre for document in chosen} == {document.genre for document in reported}
    assert not {document.id for document in chosen} & {document.id for document in reported}
    known = set().union(*(passages(document.text) for document in reported))
    assert [document.id for document in chosen if passages(document.text) & known] == []
    assert passages(reported[0].text[40:]) & known  # a copied passage would be seen


@pytest.mark.parametrize("ending", ["txt", "md"])
def test_blank_lines_stand_between_the_documents_of_a_text_file(tmp_path: Path, ending: str):
    path = tmp_path / f"texts.{ending}"
    path.write_text(f"{ONE}\n\n{TWO}\n\n\n{THREE}\n", encoding="utf-8")
    assert texts(path) == [ONE, TWO, THREE]
    assert {document.genre for document in documents(str(path), 100)} == {path.name}


def test_rows_are_documents_and_the_column_is_found(tmp_path: Path):
    rows = [{"source": 1, "text": ONE}, {"source": 2, "text": THREE}]
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = tmp_path / "texts.csv"
    table.write_text(f'n,story\n1,"{ONE}"\n2,"{TWO}"\n', encoding="utf-8")
    whole = tmp_path / "texts.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(whole))
    assert texts(lines) == texts(whole) == [ONE, THREE]
    assert texts(table) == [ONE, TWO]


def test_the_first_ones_are_taken_and_headings_and_repeats_left_out(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(["= Harbours =", ONE, ONE, TWO, THREE]), encoding="utf-8")
    seen: list[Event] = []
    with listening(seen.append):
        assert texts(path, most=2) == [ONE, TWO]
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert notes == ["2 texts of texts.txt are shorter than 32 characters or repeat."]


def test_a_long_document_is_taken_whole(tmp_path: Path):
    path = tmp_path / "texts.jsonl"
    long = "word " * 20_000
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in (long, ONE)), encoding="utf-8")
    assert texts(path) == [long.strip(), ONE]


def test_both_models_get_what_was_read_first(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_text(f"{ONE}\n\n{TWO}", encoding="utf-8")
    assert texts(path) == [ONE, TWO]
    path.write_text(f"{ONE}\n\n{THREE}", encoding="utf-8")
    assert texts(path) == [ONE, TWO]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.txt", ONE, r"has 1 documents of at least 32 characters.*blank lines"),
        ("texts.txt", "", r"has 0 documents"),
        ("texts.docx", ONE, r"ends in one of \.txt, \.md, .* not '\.docx'"),
        ("texts.jsonl", '{"text": "cut', r"texts\.jsonl cannot be read as \.jsonl"),
        ("texts.parquet", "no table", r"texts\.parquet cannot be read as \.parquet"),
        ("texts.jsonl", '{"text": 1}\n{"text": 2}\n', r"no text in column 'text': it holds int"),
    ],
)
def test_what_cannot_be_documents_is_refused(tmp_path: Path, name: str, content: str, message: str):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(MeasurementError, match=message):
        texts(path)


def test_a_file_that_is_not_there_is_refused_with_the_nearest_name(tmp_path: Path):
    (tmp_path / "texts.txt").write_text(ONE, encoding="utf-8")
    with pytest.raises(MeasurementError, match=r"Did you mean 'texts\.txt'"):
        texts(tmp_path / "text.txt")


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch):
    def endless(name: str, *, split: str, streaming: bool):
        assert (name, split, streaming) == ("owner/name", "test", True)
        yield {"page": ONE, "title": "one"}
        yield {"page": THREE, "title": "three"}
        pytest.fail("more was read than is asked for")

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda _name: ["train", "test"])
    monkeypatch.setattr(datasets, "load_dataset", endless)
    assert texts("hub:owner/name:test:page", most=2) == [ONE, THREE]
    with pytest.raises(PromptError, match=r"no column 'paeg'. Did you mean 'page'"):
        texts("hub:owner/name:test:paeg", most=2)
