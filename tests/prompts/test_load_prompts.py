import json

import pyarrow
import pytest
from pyarrow import parquet

from obliteratus.errors import PromptError, UsageError
from obliteratus.events import DeviationRecorded, Note, listening
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.load import contrast_set, load_prompts
from obliteratus.prompts.records import LONGEST_PROMPT
from obliteratus.settings import PromptSettings

TEXTS = ["How do I bake bread?", 'Say "hi", then stop.', "Was ist ein Übersetzer?"]


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")
    return str(path)


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def parquet_of(path, columns):
    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def test_every_format_gives_the_same_prompts(tmp_path):
    rows = [{"prompt": text} for text in TEXTS]
    files = [
        write(tmp_path / "a.txt", "\n".join(TEXTS) + "\n"),
        write(tmp_path / "b.txt", "\ufeff" + "\r\n".join(TEXTS)),
        write(tmp_path / "a.csv", "prompt\n" + "\n".join(map(quoted, TEXTS))),
        write(tmp_path / "a.json", json.dumps(rows)),
        write(tmp_path / "b.json", json.dumps(TEXTS)),
        write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))),
        write(tmp_path / "b.jsonl", "\n".join(map(json.dumps, TEXTS))),
        parquet_of(tmp_path / "a.parquet", {"prompt": TEXTS}),
    ]
    loaded = [load_prompts(file) for file in files]
    assert [prompt.text for prompt in loaded[0]] == TEXTS
    assert all(prompts == loaded[0] for prompts in loaded)


@pytest.mark.parametrize("column", ["text", "prompt", "instruction", "goal"])
def test_known_columns_are_found_among_others(tmp_path, column):
    path = write(tmp_path / "a.csv", f"note,{column}\nx,first\ny,second\n")
    assert [prompt.text for prompt in load_prompts(path)] == ["first", "second"]


def test_the_only_string_column_is_used_and_said(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"n": 1, "Behavior": "a"}\n{"n": 2, "Behavior": "b"}\n')
    events = []
    with listening(events.append):
        assert [prompt.text for prompt in load_prompts(path)] == ["a", "b"]
    assert "column 'Behavior'" in events[0].text


def test_ids_and_categories_are_kept_and_missing_ids_follow_the_text(tmp_path):
    given = write(tmp_path / "a.csv", "id,category,prompt\n1,x,first\n2,,second\n")
    assert [(p.id, p.category) for p in load_prompts(given)] == [("1", "x"), ("2", None)]
    one = load_prompts(write(tmp_path / "a.txt", "first\nsecond\n"))
    other = load_prompts(write(tmp_path / "b.txt", "new\nsecond\nfirst\n"))
    assert {p.text: p.id for p in one}.items() <= {p.text: p.id for p in other}.items()


def test_a_repeated_text_is_used_once_and_recorded(tmp_path):
    path = write(tmp_path / "a.txt", "first\nsecond\nfirst\n")
    events = []
    with listening(events.append):
        assert [prompt.text for prompt in load_prompts(path)] == ["first", "second"]
    (event,) = events
    assert isinstance(event, DeviationRecorded)
    assert event.deviation.done == "2 different ones used"


LONG = "x" * (LONGEST_PROMPT + 1)
HUGE = "x" * 10_000_000
BAD = {
    "empty line": ("a.txt", "one\n\nthree\n", r"line 2 of .*a\.txt is empty"),
    "blank line at the end": ("a.txt", "one\ntwo\n\n", r"line 3 of .* is empty"),
    "spaces only": ("a.txt", "one\n \t\nthree\n", r"line 2 of .* is empty"),
    "one prompt": ("a.txt", "one\n", r"holds only one prompt; at least 2"),
    "empty file": ("a.txt", "", r"holds no prompts"),
    "empty jsonl": ("a.jsonl", "", r"holds no prompts"),
    "empty json list": ("a.json", "[]", r"holds no prompts"),
    "empty csv": ("a.csv", "", r"holds no prompts"),
    "csv header only": ("a.csv", "prompt\n", r"holds no prompts"),
    "the same twice": ("a.txt", "one\none\n", r"all 2 prompts .* are the same"),
    "long prompt": ("a.txt", f"one\n{LONG}\n", r"line 2 .* 32769 characters; .* at most 32768"),
    "10 MB line in txt": ("a.txt", f"one\n{HUGE}\n", r"line 2 of .* is longer than"),
    "10 MB line in jsonl": ("a.jsonl", f'"one"\n"{HUGE}"\n', r"line 2 of .* is longer than"),
    "10 MB line in csv": ("a.csv", f"prompt\n{HUGE}\n", r"line 2 of .* is longer than"),
    "10 MB prompt in json": ("a.json", f'["one", "{HUGE}"]', r"entry 2 .* 10000000 characters"),
    "not utf-8": ("a.txt", b"one\ncaf\xe9\n", r"line 2 of .* is not UTF-8 \(byte 4\)"),
    "json not utf-8": ("a.json", b'["caf\xe9"]', r"is not UTF-8 \(byte 6\)"),
    "invalid jsonl": (
        "a.jsonl",
        '"one"\n{"prompt": }\n',
        r"line 2 of .*not valid JSON .*column 12",
    ),
    "empty line in jsonl": ("a.jsonl", '"one"\n\n"two"\n', r"line 2 of .* is empty"),
    "number in jsonl": ("a.jsonl", '"one"\n7\n', r"line 2 of .* is a int"),
    "invalid json": ("a.json", '["one", ', r"is not valid JSON .*line 1"),
    "deep json": ("a.json", "[" * 100_000, r"is not valid JSON"),
    "json object": ("a.json", '{"prompt": "one"}', r"holds a JSON dict, not a list"),
    "no text column": ("a.csv", "a,b\n1,2\n3,4\n", r"columns: 'a', 'b'\). Rename"),
    "no string column": ("a.json", '[{"n": 1}, {"n": 2}]', r"columns: 'n'\). Rename"),
    "missing column": ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', r"line 2 .* no 'prompt'"),
    "null prompt": ("a.jsonl", '{"prompt": "a"}\n{"prompt": null}\n', r"line 2 .* holds nothing"),
    "list prompt": ("a.jsonl", '{"prompt": "a"}\n{"prompt": []}\n', r"line 2 .* holds a list"),
    "empty line in csv": ("a.csv", "prompt\none\n\ntwo\n", r"line 3 of .* is empty"),
    "comma in csv": ("a.csv", "prompt\none, two\nthree\n", r"line 2 of .* has 2 fields"),
    "open quote in csv": ("a.csv", 'prompt\n"one\ntwo\n', r"line 3 of .* not valid CSV"),
    "duplicate ids": (
        "a.csv",
        "id,prompt\n1,a\n2,b\n1,c\n",
        r"'1' is given twice .*line 2.*line 4",
    ),
    "missing id": ("a.csv", "id,prompt\n1,a\n,b\n", r"line 3 .* has no 'id'"),
    "damaged parquet": ("a.parquet", b"PAR1 nothing", r"cannot be read as Parquet"),
    "unknown suffix": ("a.xlsx", "one\ntwo\n", r"\.txt, .*\.parquet, not '\.xlsx'"),
    "no suffix": ("prompts", "one\ntwo\n", r"not ''"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_the_place_and_a_remedy(tmp_path, case):
    name, content, message = BAD[case]
    with pytest.raises(PromptError, match=message) as error:
        load_prompts(write(tmp_path / name, content))
    assert error.value.exit_code == 2
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600


def test_a_missing_file_names_the_nearest_one(tmp_path):
    write(tmp_path / "harmful.txt", "one\ntwo\n")
    with pytest.raises(PromptError, match=r"no file .*Did you mean 'harmful.txt'"):
        load_prompts(str(tmp_path / "harmfull.txt"))
    with pytest.raises(PromptError, match=r"written hub:owner/name"):
        load_prompts("owner/name")


def test_a_folder_is_not_a_prompt_file(tmp_path):
    with pytest.raises(PromptError, match=r"is a folder"):
        load_prompts(str(tmp_path))


def test_a_file_too_large_to_read_whole_is_refused_unread(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(300_000_000)  # sparse: no disk is used
    with pytest.raises(PromptError, match=r"has 300 MB; .* at most 268 MB"):
        load_prompts(str(path))


def settings_for(tmp_path, harmful, harmless, suffix=".csv", **others):
    return PromptSettings(
        harmful=write(tmp_path / f"harmful{suffix}", harmful),
        harmless=write(tmp_path / f"harmless{suffix}", harmless),
        **others,
    )


def test_default_is_the_built_in_set():
    assert contrast_set(PromptSettings()) is refusal()


def test_equal_ids_pair_rows_whatever_their_order(tmp_path):
    contrast = contrast_set(
        settings_for(tmp_path, "id,prompt\na,1\nb,2\n", "id,prompt\nb,two\na,one\n")
    )
    assert contrast.is_paired
    assert [p.text for p in contrast.harmful] == ["1", "2"]
    assert [p.text for p in contrast.harmless] == ["one", "two"]


def test_a_pair_column_pairs_rows_and_names_them(tmp_path):
    contrast = contrast_set(
        settings_for(tmp_path, "pair,prompt\nx,1\ny,2\n", "pair,prompt\ny,one\nx,two\n")
    )
    assert contrast.is_paired
    assert [p.id for p in contrast.harmful] == [p.id for p in contrast.harmless] == ["x", "y"]


@pytest.mark.parametrize(
    ("harmful", "harmless", "kept"),
    [
        ("id,prompt\na,1\nb,2\nc,1\nd,3\n", "id,prompt\na,w\nb,x\nc,y\nd,z\n", ["a", "b", "d"]),
        ("id,prompt\na,1\nb,2\nc,3\n", "id,prompt\na,w\nb,x\nc,w\n", ["a", "b"]),
    ],
)
def test_a_pair_that_repeats_a_text_is_left_out_and_recorded(tmp_path, harmful, harmless, kept):
    events = []
    with listening(events.append):
        contrast = contrast_set(settings_for(tmp_path, harmful, harmless))
    assert contrast.is_paired
    assert [p.id for p in contrast.harmful] == [p.id for p in contrast.harmless] == kept
    (event,) = events
    assert event.deviation.done == f"{len(kept)} different ones used"


def test_pairs_that_are_all_one_are_refused(tmp_path):
    settings = settings_for(tmp_path, "id,prompt\na,1\nb,1\n", "id,prompt\na,w\nb,x\n")
    with pytest.raises(PromptError, match=r"all 2 pairs of .* repeat one text"):
        contrast_set(settings)


@pytest.mark.parametrize(
    ("harmful", "harmless"),
    [
        ("prompt\n1\n2\n", "prompt\none\ntwo\n"),  # equally long, but nothing says they are pairs
        ("id,prompt\na,1\nb,2\n", "id,prompt\na,one\nc,two\n"),
        ("id,prompt\na,1\nb,2\n", "id,prompt\na,one\nb,two\nc,three\n"),
        ("id,prompt\na,1\nb,2\n", "prompt\none\ntwo\n"),
    ],
)
def test_anything_else_is_unpaired_and_nothing_is_cycled(tmp_path, harmful, harmless):
    events = []
    with listening(events.append):
        contrast = contrast_set(settings_for(tmp_path, harmful, harmless))
    assert not contrast.is_paired
    assert len(contrast.harmful) == 2
    assert len(contrast.harmless) == harmless.count("\n") - 1
    assert any(isinstance(event, Note) and "unpaired" in event.text for event in events)


def test_categories_choose_pairs_of_the_built_in_set():
    contrast = contrast_set(PromptSettings(categories=("fraud", "drugs")))
    assert len(contrast.harmful) == len(contrast.harmless) == 96
    assert {p.category for p in contrast.harmless} == {"fraud", "drugs"}


def test_categories_keep_all_unpaired_harmless_prompts(tmp_path):
    contrast = contrast_set(
        settings_for(
            tmp_path,
            "category,prompt\na,1\nb,2\nb,3\n",
            "prompt\none\ntwo\nthree\nfour\n",
            categories=("b",),
        )
    )
    assert [p.text for p in contrast.harmful] == ["2", "3"]
    assert len(contrast.harmless) == 4


def test_an_unknown_category_names_the_nearest():
    with pytest.raises(UsageError, match=r"no category called 'weapon'. Did you mean 'weapons'"):
        contrast_set(PromptSettings(categories=("weapon",)))
    with pytest.raises(UsageError, match=r"categories is empty"):
        contrast_set(PromptSettings(categories=()))


def test_categories_of_a_set_without_any_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"have no categories"):
        contrast_set(
            settings_for(tmp_path, "1\n2\n", "one\ntwo\n", suffix=".txt", categories=("a",))
        )
