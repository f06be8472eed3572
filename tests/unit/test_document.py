"""A document knows the line of everything, and complains about nothing without it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

from mishika_migrate import errors
from mishika_migrate.matrix import document

SAMPLE = """\
# a comment
name: shop
jobs: 4
verbose: false
ratio: 0.5
tables:
  orders:
    need: required
    columns: [region, number]
    references:
      - column: customer
        key: id
      - {column: product, key: sku}
empty:
day: 2024-02-29
"""


@pytest.fixture
def sample() -> document.Document:
    return document.parse(SAMPLE, name="shop.yaml")


def refused(text: str) -> errors.ConfigurationError:
    with pytest.raises(errors.ConfigurationError) as caught:
        document.parse(text, name="f.yaml")
    assert caught.value.hint
    return caught.value


# -- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ((), 1),
        (("name",), 2),
        (("tables",), 6),
        (("tables", "orders", "need"), 8),
        (("tables", "orders", "columns", 1), 9),
        (("tables", "orders", "references", 0), 11),
        (("tables", "orders", "references", 0, "key"), 12),
        (("tables", "orders", "references", 1, "key"), 13),
        (("tables", "orders", "stage"), 7),
        (("tables", "nowhere", "need"), 6),
        (("nothing", "of", "this", 3), 1),
    ],
)
def test_line_of_keys(sample: document.Document, keys: tuple[document.Key, ...], line: int) -> None:
    assert sample.line(*keys) == line
    assert sample.where(*keys) == f"shop.yaml:{line}"


def test_a_multi_line_value_is_found_at_its_key() -> None:
    found = document.parse("a: 1\ntext: >\n  one\n  two\nb: 2\n", name="f.yaml")
    assert (found.line("text"), found.line("b")) == (2, 5)


def test_repr_shows_no_value() -> None:
    assert "hunter2" not in repr(document.parse("password: hunter2\n", name="f.yaml"))


def test_aliases_and_merges_are_plain_values() -> None:
    found = document.parse("a: &x {k: 1}\nb: *x\nc:\n  <<: *x\n  z: 2\n", name="f.yaml")
    assert found.value == {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "z": 2}}
    assert (found.line("b", "k"), found.line("c", "z")) == (2, 5)


def test_many_nested_aliases_are_read_once() -> None:
    doubled = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    assert document.parse("a0: &a0 x\n" + doubled, name="f.yaml").line("a39") == 40


# -- what is no document --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "f.yaml:1: expected a mapping"),
        ("# nothing\n", "f.yaml:1: expected a mapping"),
        ("\n- a\n- b\n", "f.yaml:2: expected a mapping (key: value), found a list"),
        ("just words\n", "f.yaml:1: expected a mapping (key: value), found a single value"),
        ("a: 1\nb: [1, 2\nc: 3\n", "f.yaml:3: not valid YAML: "),
        ("a: 1\n\tb: 2\n", "f.yaml:2: not valid YAML: "),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: not valid YAML: "),
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: a is given twice, first in line 1"),
        ("t:\n  x: {k: 1, k: 2}\n", "f.yaml:2: k is given twice, first in line 2"),
        ("1: a\n0x1: b\n", "f.yaml:2: 0x1 is given twice, first in line 1"),
        ("a: 1\nb: \x01\n", "f.yaml:2: not valid YAML: the character U+0001"),
        ("a: 1\n? [x, y]\n: 2\n", "f.yaml:2: a key that is not a single word"),
        ("a: 1\nb: !!python/name:os.system x\n", "f.yaml:2: a value with a tag"),
        ("a: 1\nb: !!set {x}\n", "f.yaml:2: a value with a tag"),
        ("a: 1\nb: !!str {x: y}\n", "f.yaml:2: a value with a tag"),
        ("a: 1\n!!map b: 2\n", "f.yaml:2: a value with a tag"),
        ("a: 1\nb: <<\n", "f.yaml:2: a value with a tag"),
        ("a: 1\n=: 2\n", "f.yaml:2: a value with a tag"),
        ("a: 1\nb: 2024-13-45\n", "f.yaml:2: a value that looks like timestamp"),
        ('a: 1\nb: !!float ""\n', "f.yaml:2: a value that looks like float"),
        ("a: 1\nb: !!bool perhaps\n", "f.yaml:2: a value that looks like bool"),
        ("a: 1\nb: !!timestamp soon\n", "f.yaml:2: a value that looks like timestamp"),
        ('a: 1\nb: "\\ud800"\n', "f.yaml:2: a value that looks like str"),
        ("a: 1\nb: &x [*x]\n", "f.yaml:2: a value contains itself"),
        ("a: 1\nb:\n  <<: 5\n", "f.yaml:3: not valid YAML: "),
        ('a: "\\UFFFFFFFF"\n', "f.yaml:1: not valid YAML: "),
        ("a: " + "[" * 5000, "f.yaml:1: nested too deeply"),
    ],
)
def test_bad_text_is_refused_with_its_line(text: str, start: str) -> None:
    error = refused(text)
    assert error.message.startswith(start)
    assert error.status == 2


@pytest.mark.parametrize(
    "line",
    ["password: *hunter2", "password: !hunter2 x", "password: [hunter2", "password: 'hunter2", "p: @hunter2"],
)
def test_no_error_quotes_a_value(line: str) -> None:
    error = refused(f"a: 1\n{line}\n")
    told = "".join(traceback.format_exception(error))
    assert "hunter2" not in error.message + error.hint
    assert "hunter2" not in told


@hypothesis.given(strategies.text())
@hypothesis.settings(deadline=None)
def test_parse_raises_nothing_else_on_any_text(text: str) -> None:
    parses_or_refuses(text)


PIECES = [
    *"-?:,[]{}#&*!|>'\"%@`=~ \n\n\t01ae_.\\",
    *("  ", "\n  ", "a: ", "<<: ", "- ", "&a ", "*a", "---\n", "...\n", "\x85", "\ufeff"),
    *("!!int ", "!!map ", "!!omap ", "!!binary ", "\\x", "\\U", "0x", "1:60", "2024-02-30"),
]


@hypothesis.given(strategies.lists(strategies.sampled_from(PIECES)).map("".join))
@hypothesis.settings(max_examples=500, deadline=None)
def test_parse_raises_nothing_else_on_text_like_yaml(text: str) -> None:
    parses_or_refuses(text)


def parses_or_refuses(text: str) -> None:
    try:
        found = document.parse(text, name="f.yaml")
    except errors.ConfigurationError as error:
        assert error.message.startswith("f.yaml:")
        assert error.hint
    else:
        assert isinstance(found.value, dict)


# -- files ----------------------------------------------------------------------------------------


def test_read_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("\ufeffa: é\n", encoding="utf-8")
    found = document.read(path)
    assert found.value == {"a": "é"}
    assert found.where("a") == f"{path}:1"


def test_read_refuses_what_is_no_readable_file(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path / "missing.yaml", "no such file"),
        (tmp_path, "cannot be read"),
        (Path("a\0b"), "cannot be read"),
    ]:
        with pytest.raises(errors.ConfigurationError, match=words) as caught:
            document.read(path)
        assert caught.value.hint


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "link", "large"])
def test_read_waits_for_no_writer_and_no_end(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml" if kind != "/dev/zero" else Path(kind)
    words = "not a regular file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("nowhere")
        words = "a link to a file that does not exist"
    elif kind == "large":
        path.write_text("a: 1\n" + "# no end\n" * 120_000)
        words = "larger than 1 MB"
    with pytest.raises(errors.ConfigurationError, match=words) as caught:
        document.read(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


@pytest.mark.parametrize("given", ["postgresql://u:hunter2@h/d", "u:hunter2@h", "mysql://hunter2", "x@" + "y" * 5000])
def test_address_in_place_of_a_file_is_not_repeated(given: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        document.read(Path(given))
    assert not [secret for secret in ("hunter2", "yyy") if secret in caught.value.message]
    assert caught.value.__cause__ is None


def test_read_names_the_line_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(errors.ConfigurationError) as caught:
        document.read(path)
    assert caught.value.message == f"{path}:2: not UTF-8 text"


# -- asking ---------------------------------------------------------------------------------------


def test_getters_give_values(sample: document.Document) -> None:
    assert document.text(sample, "name") == "shop"
    assert document.text(sample, "title", default=None) is None
    assert document.number(sample, "jobs", least=1) == 4
    assert document.number(sample, "retries", default=3) == 3
    assert document.flag(sample, "verbose") is False
    assert document.flag(sample, "quiet", default=True) is True
    assert document.texts(sample, "tables", "orders", "columns") == ("region", "number")
    assert document.texts(sample, "tables", "orders", "objects", default=()) == ()
    assert document.choice(sample, "tables", "orders", "need", among=("required", "never")) == "required"
    assert document.names(sample, "tables") == ("orders",)
    assert document.names(sample, "views") == ()
    assert document.count(sample, "tables", "orders", "references") == 2
    assert document.count(sample, "tables", "orders", "nothing") == 0
    assert document.text(sample, "tables", "orders", "references", 1, "key") == "sku"


COMPLAINTS: list[tuple[Callable[[document.Document], object], str]] = [
    (lambda doc: document.text(doc, "jobs"), "3: jobs: expected text, found a number"),
    (lambda doc: document.text(doc, "day"), "15: day: expected text, found a date"),
    (lambda doc: document.text(doc, "empty"), "14: empty: expected text, found nothing"),
    (lambda doc: document.text(doc, "empty", default=None), "14: empty: expected text, found nothing"),
    (lambda doc: document.text(doc, "title"), "1: title is missing, expected text"),
    (lambda doc: document.text(doc, "name", "x"), "2: name.x is missing, expected text"),
    (lambda doc: document.flag(doc, "name"), "2: name: expected true or false, found text"),
    (lambda doc: document.number(doc, "verbose"), "4: verbose: expected a whole number, found true or false"),
    (lambda doc: document.number(doc, "ratio"), "5: ratio: expected a whole number, found a fraction"),
    (lambda doc: document.number(doc, "jobs", least=5), "3: jobs: expected a whole number from 5, found 4"),
    (lambda doc: document.texts(doc, "name"), "2: name: expected a list of texts, found text"),
    (lambda doc: document.texts(doc, "lists"), "1: lists is missing, expected a list of texts"),
    (lambda doc: document.count(doc, "tables"), "6: tables: expected a list, found a mapping"),
    (lambda doc: document.names(doc, "name"), "2: name: expected a mapping (key: value), found text"),
]


@pytest.mark.parametrize(("ask", "message"), COMPLAINTS, ids=[message for _, message in COMPLAINTS])
def test_getters_name_place_key_and_expected_type(
    sample: document.Document, ask: Callable[[document.Document], object], message: str
) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        ask(sample)
    assert caught.value.message == f"shop.yaml:{message}"
    assert caught.value.hint


def test_texts_refuses_what_is_not_text_or_twice_there() -> None:
    found = document.parse("a:\n  - x\n  - 1\nb:\n  - x\n  - x\n", name="f.yaml")
    with pytest.raises(errors.ConfigurationError, match=r"^f\.yaml:3: a\[1\]: expected text, found a number"):
        document.texts(found, "a")
    with pytest.raises(errors.ConfigurationError, match=r"^f\.yaml:6: b\[1\] repeats"):
        document.texts(found, "b")


def test_unknown_key_is_refused_with_the_nearest_name() -> None:
    found = document.parse("source: a\nt:\n  tarrget: b\n", name="f.yaml")
    with pytest.raises(errors.ConfigurationError) as caught:
        document.fields(found, "t", allowed=("source", "target"))
    assert caught.value.message == "f.yaml:3: unknown key t.tarrget"
    assert caught.value.hint == "Did you mean target?"
    with pytest.raises(errors.ConfigurationError) as caught:
        document.fields(found, allowed=("source", "x"))
    assert caught.value.hint == "The keys allowed there are: source, x."


@pytest.mark.parametrize("key", ["hunter2secret", "p@ss", "a://b", "word word", "x" * 41])
def test_unknown_key_that_looks_like_no_name_is_not_quoted(key: str) -> None:
    found = document.parse(f"t:\n  '{key}': 1\n", name="f.yaml")
    with pytest.raises(errors.ConfigurationError) as caught:
        document.fields(found, "t", allowed=("source",))
    assert caught.value.message == "f.yaml:2: an unknown key in t"


def test_strange_keys_and_values_are_not_quoted() -> None:
    with pytest.raises(errors.ConfigurationError, match=r"^f\.yaml:2: a key is given twice, first in line 1$"):
        document.parse("p@ss: 1\np@ss: 2\n", name="f.yaml")
    found = document.parse("t@b:\n  need: hun@ter\n", name="f.yaml")
    with pytest.raises(errors.ConfigurationError, match=r"2: ….need: expected one of a, b, found something else$"):
        document.choice(found, "t@b", "need", among=("a", "b"))


def test_missing_key_is_refused() -> None:
    found = document.parse("a: 1\nt:\n  b: 2\n", name="f.yaml")
    with pytest.raises(errors.ConfigurationError, match=r"^f\.yaml:2: t lacks c"):
        document.fields(found, "t", allowed=("b", "c"), required=("c",))
    with pytest.raises(errors.ConfigurationError, match=r"^f\.yaml:1: the file lacks z"):
        document.fields(found, allowed=("a", "t", "z"), required=("z",))


def test_a_key_that_is_not_text_is_refused() -> None:
    found = document.parse("a: 1\non: 2\n", name="f.yaml")
    with pytest.raises(errors.ConfigurationError, match=r"^f\.yaml:2: the file: a key that is not text"):
        document.fields(found, allowed=("a",))


def test_choice_suggests_the_nearest_word() -> None:
    found = document.parse("need: requird\n", name="f.yaml")
    with pytest.raises(errors.ConfigurationError) as caught:
        document.choice(found, "need", among=("required", "never"))
    assert caught.value.message == "f.yaml:1: need: expected one of required, never, found requird"
    assert caught.value.hint == "Did you mean required?"
