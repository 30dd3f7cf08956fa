"""Files of rows: the same documents from each kind, and what is said of a file that is not what its ending says."""

import csv
import gzip
import json

import pytest

from lightning_app.data.chats import Chat
from lightning_app.data.corpus import Document, read_documents
from lightning_app.errors import InputError

PAIRS = [
    {"prompt": "1+1=", "target": "2, of course\nyes"},
    {"prompt": 'say "hi"', "target": "hi\tthere; ü 🙂"},
    {"prompt": "NA", "target": "null"},
]
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


def write_separated(path, rows, delimiter):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


WRITERS = {
    "jsonl": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    "ndjson": lambda path, rows: path.write_text("\n\n".join(map(json.dumps, rows)) + "\n"),
    "json": lambda path, rows: path.write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8"),
    "csv": lambda path, rows: write_separated(path, rows, ","),
    "tsv": lambda path, rows: write_separated(path, rows, "\t"),
    "parquet": write_parquet,
}


def documents(path, **options) -> list[Document]:
    return list(read_documents(str(path), **options))


@pytest.mark.parametrize("kind", WRITERS)
def test_all_kinds_give_the_same_pairs(tmp_path, kind):
    for path in (tmp_path / f"a.{kind}", tmp_path / f"b.{kind.upper()}"):
        WRITERS[kind](path, PAIRS)
        found = documents(path)
        assert [(d.prompt, d.text) for d in found] == [(row["prompt"], row["target"]) for row in PAIRS]
        assert all(d.name.startswith(str(path)) for d in found)
        assert [d.text for d in documents(path, text_field="target")] == [row["target"] for row in PAIRS]


@pytest.mark.parametrize("within", [True, False])
def test_the_arguments_of_a_call_are_an_object(tmp_path, within):
    """As chat templates take them; OpenAI's rows have them as JSON in a text, as `serve` gets them."""

    def row(arguments):
        call = {"name": "f", "arguments": arguments}
        call = {"type": "function", "function": call} if within else call
        return {"messages": [CHAT["messages"][0], {"role": "assistant", "tool_calls": [call]}]}

    path = tmp_path / "a.jsonl"
    WRITERS["jsonl"](path, [row('{"x": {"y": [1]}}'), row({"x": {"y": [1]}}), row("")])
    found = [document.chat.messages[1]["tool_calls"][0] for document in documents(path)]
    assert [(call["function"] if within else call)["arguments"] for call in found] == [{"x": {"y": [1]}}] * 2 + [{}]
    for wrong in ("{x", "5", [1], "[" * 100_000):
        WRITERS["jsonl"](path, [row(wrong)])
        with pytest.raises(InputError, match=r"a.jsonl:1, message 2: the arguments of a call are .*: "):
            documents(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_conversations(tmp_path, kind):
    calls = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b\r\n"}]}
    rows = [CHAT, {"messages": [CHAT["messages"][0], calls, {"role": "tool", "content": "3"}, CHAT["messages"][1]]}]
    path = tmp_path / f"a.{kind}"
    WRITERS[kind](path, rows)
    first, second = documents(path)
    assert first == Document("hi\n\nho", name=first.name, chat=Chat(tuple(CHAT["messages"])))
    assert [set(message) for message in second.chat.messages][1] == {"role", "tool_calls"}
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "t", "talk": [parts, calls], "tools": [{"name": "f"}]}))
    (third,) = documents(tmp_path / "b.jsonl", text_field="talk")
    assert third.chat.messages[0]["content"] == "ab\n"
    assert third.chat.tools == [{"name": "f"}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_conversations_of_sharegpt(tmp_path, kind):
    said = [{"from": "human", "value": "hi\r\n"}, {"from": "gpt", "value": "ho"}]
    rows = [{"id": "1", "conversations": said, "system": ""}, {"id": "2", "conversations": said, "system": "Be short."}]
    WRITERS[kind](tmp_path / f"a.{kind}", rows)
    first, second = (document.chat.messages for document in documents(tmp_path / f"a.{kind}"))
    assert first == ({"role": "user", "content": "hi\n"}, {"role": "assistant", "content": "ho"})
    assert second == ({"role": "system", "content": "Be short."}, *first)
    asked = documents(tmp_path / f"a.{kind}", text_field="conversations")
    assert [document.chat.messages for document in asked] == [first, second]


def test_conversations_under_other_names_and_a_system_turn(tmp_path):
    turns = [{"from": "system", "value": "s"}, {"from": "user", "value": "a"}, {"from": "chatgpt", "value": "b"}]
    rows = [{"conversation": turns, "system": "unused"}, {"conversations": CHAT["messages"]}]
    WRITERS["jsonl"](tmp_path / "a.jsonl", rows)
    found = [[message["role"] for message in d.chat.messages] for d in documents(tmp_path / "a.jsonl")]
    assert found == [["system", "user", "assistant"], ["user", "assistant"]]


def test_of_a_text_or_pair_beside_messages_one_is_read_and_that_is_said(tmp_path, caplog):
    WRITERS["jsonl"](tmp_path / "a.jsonl", [{"text": "one", **CHAT}, {"text": "two", **CHAT}])
    assert [d.text for d in documents(tmp_path / "a.jsonl")] == ["one", "two"]
    WRITERS["jsonl"](tmp_path / "b.jsonl", [{**PAIRS[0], **CHAT}])
    assert [d.text for d in documents(tmp_path / "b.jsonl")] == [PAIRS[0]["target"]]
    assert [record.message.removeprefix(f"{tmp_path}/") for record in caplog.records] == [
        "a.jsonl: rows have text beside messages, and it is read; text_field: messages, beside the path, reads the "
        "conversations",
        "b.jsonl: rows have prompt and target beside messages, and these are read; text_field: messages, beside the "
        "path, reads the conversations",
    ]
    caplog.clear()
    WRITERS["jsonl"](tmp_path / "c.jsonl", [{"text": None, **CHAT}])
    for name, field in (("a", "messages"), ("b", "messages"), ("c", "text")):
        assert all(d.chat is not None for d in documents(tmp_path / f"{name}.jsonl", text_field=field))
    assert caplog.records == []


def test_texts_of_a_list_and_a_long_field(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["one", {"text": "two"}]))
    assert [(d.name, d.text) for d in documents(tmp_path / "a.json")] == [
        (f"{tmp_path}/a.json, row 1", "one"),
        (f"{tmp_path}/a.json, row 2", "two"),
    ]
    long = "word " * 50_000
    write_separated(tmp_path / "b.csv", [{"text": long, "n": 1}], ",")
    assert [d.text for d in documents(tmp_path / "b.csv")] == [long]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", json.dumps(PAIRS[0]), "a.csv ends in .csv and holds JSON; name it .jsonl"),
        ("a.tsv", json.dumps(PAIRS, indent=1), "ends in .tsv and holds JSON"),
        ("a.csv", "prompt\ttarget\n1\t2\n", "ends in .csv, and its first line is separated by tabs .name it .tsv"),
        ("a.tsv", "prompt,target\n1,2\n", r"separated by commas \(name it .csv"),
        ("a.csv", "prompt;target\n1;2\n", "separated by ';'"),
        ("a.csv", "text,text\n1,2\n", "a.csv:1: two columns are named 'text'"),
        ("a.csv", "prompt,target\n1,2\n\n1,2,3\n", "a.csv:4: 3 fields, and the first line names 2"),
        ("a.csv", 'prompt,target\n1,"2\n3\n', "a.csv:3: unexpected end of data"),
        ("a.csv", "prompt,target\n1,\n", "a.csv:2: 'target' is empty"),
        ("a.csv", "", "a.csv is empty; give rows"),
        ("a.csv", "body\nx\n", r"a.csv:2: 'text' is None, not a text \(fields: body\)"),
        ("a.csv", "text,n\nK\xe4fer,1\n".encode("latin1"), "a.csv is not UTF-8.*convert it: iconv -f CP1252"),
        ("a.csv", "text,n\nKäfer,1\n".encode("utf-16"), "a.csv is UTF-16, not UTF-8"),
        ("a.json", "\n".join(map(json.dumps, PAIRS)), "a.json: not JSON .*one object per line, so name it .jsonl"),
        ("a.json", json.dumps({"data": PAIRS}), "holds one dict with data, not a list"),
        ("a.json", json.dumps([PAIRS[0], 3]), "a.json, row 2: 3 is neither an object nor a text"),
        ("a.json", "text\n1\n", "a.json: not JSON .*give a list of objects"),
        ("a.jsonl", json.dumps(PAIRS), "a.jsonl:1: a list, not an object; .*ends in .json"),
        ("a.jsonl", json.dumps(PAIRS, indent=1), "a.jsonl:1: no JSON in UTF-8 .*ends in .json"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "a.jsonl ends in .jsonl, but is packed by gzip; unpack"),
        ("a.parquet", "prompt,target\n1,2\n", "ends in .parquet, but is not a Parquet file"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet .*is it whole"),
        ("a.txt", b"PAR1\x15\x04PAR1", "ends in .txt, but is a Parquet file; name it .parquet"),
        ("a.txt", b"%PDF-1.4\n", "ends in .txt, but is a PDF document"),
        ("a.txt", b"GGUF\x03\x00", "but is a GGUF model"),
        ("a.txt", b"some text\x00\x01", "is a binary file"),
        ("notes", b"PK\x03\x04", "notes is a ZIP archive"),
    ],
)
def test_a_file_of_another_kind_than_its_ending_says_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said):
        documents(tmp_path / name)


def test_texts_that_only_look_like_another_kind_are_read(tmp_path):
    for text in ('{"a": 1}', "GGUF is a format", "PK", "a,b\n1,2", "PAR for the course"):
        (tmp_path / "a.txt").write_text(text)
        assert [d.text for d in documents(tmp_path / "a.txt")] == [text]


def of(*messages, **further):
    return {"messages": list(messages), **further}


USER, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            of(USER, {"role": "bot", "content": "x"}),
            "a.jsonl:2, message 2 has the role 'bot'; a role is one of system,",
        ),
        (of({"from": "human", "text": "x"}), r"a.jsonl:2, message 1 has no role \(fields: from, text\)"),
        ({"conversations": [{"from": "bing", "value": "x"}]}, "a.jsonl:2, message 1 has the role 'bing'; a role is"),
        ({"conversations": [{"from": "human", "value": 3}]}, "message 1: the content is 3, not a text"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "a.jsonl:2: the assistant says nothing"),
        (of(USER, {"role": ["assistant"], "content": "x"}), "message 2 has the role .'assistant'.;"),
        (of("hi"), "a.jsonl:2, message 1: 'hi' is not an object"),
        (of(USER), "a.jsonl:2: the assistant says nothing"),
        (of(USER, {"role": "assistant", "content": " "}), "message 2: the assistant's content is empty"),
        (of(USER, {"role": "assistant", "content": 3}), "message 2: the content is 3, not a text"),
        (of({"role": "user", "content": [{"type": "image"}]}, SAID), "message 1: the content is .*only text"),
        (of(USER, SAID, tools="f"), "a.jsonl:2: 'tools' is 'f'"),
        (of(), r"a.jsonl:2: 'messages' is \[\]"),
        ({"messages": "hi"}, "a.jsonl:2: 'messages' is 'hi'; give a list"),
        ({"text": "x"}, r"a.jsonl:2: conversations and plain texts in one file \(.*a.jsonl:1\)"),
        (PAIRS[0], "a.jsonl:2: conversations and pairs in one file"),
    ],
)
def test_bad_rows_of_conversations_are_named(tmp_path, row, said):
    WRITERS["jsonl"](tmp_path / "a.jsonl", [CHAT, row])
    with pytest.raises(InputError, match=said):
        documents(tmp_path / "a.jsonl")
