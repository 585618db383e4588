"""YAML as plain data: scalars of YAML 1.2, places, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import ConfigError
from rerank.yamlfile import MAX_BYTES, MAX_NODES, dump_yaml, parse_yaml, read_yaml, show_key

# fmt: off
TRICKY = st.sampled_from([
    "no", "yes", "on", "off", "NO", "n", "y", "true", "TRUE", "False", "~", "null", "Null", "", "1e-5", "0x1F", "0o17",
    "017", "1_000", "+", "+1", "-1", "1.5", "1e5", "+.5", "5.", ".inf", "-.inf", ".nan", "inf", "nan", "Infinity",
    "2020-01-01", "2001-12-14t21:59:43.10-05:00", "12:30:45", "-", "--- ", "...", "<<", "=", "*a", "&a", "!x",
    "%YAML 1.1", "@", "`", "# c", "a # c", "a: b", "a:", ": a", "? a", "- a", "[a", "{a", "a]", "'", '"', "'x'", '"x"',
    "\\", "\\n", "  lead", "trail  ", "\ttab", "a\tb", "one\ntwo", "one\n\ntwo\n", "\n", "\r", "a\rb", "\x85", "a\x85b",
    "\u2028", "\ufeff", "\ufeffa", "\x00", "\x1b", "中文", "ü", "😀", "e\u0301", "\ud800",
])
# fmt: on
TEXTS = st.one_of(TRICKY, st.text(max_size=30))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**38), 10**38),
    st.floats(allow_nan=False),
    TEXTS,
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


@given(PLAIN)
def test_what_is_written_is_read_back(value: Any) -> None:
    again = parse_yaml(dump_yaml(value)).value
    assert again == value
    assert repr(again) == repr(value)


@given(TRICKY)
def test_tricky_texts_stay_texts_as_values_and_as_keys(text: str) -> None:
    assert parse_yaml(dump_yaml({text: text, "list": [text]})).value == {text: text, "list": [text]}


def test_not_a_number_is_read_back() -> None:
    assert math.isnan(parse_yaml(dump_yaml([math.nan])).value[0])


def test_equal_values_are_written_out_rather_than_referred_to() -> None:
    part = {"k": 1}
    assert dump_yaml([part, part]) == "- k: 1\n- k: 1\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("yes", "yes"),
        ("true", True),
        ("TRUE", True),
        ("False", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("nULL", "nULL"),
        ("", None),
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("+.5e-3", 0.0005),
        ("-.inf", -math.inf),
        ("+.INF", math.inf),
        ("0x1F", 31),
        ("-0x1F", "-0x1F"),
        ("0o17", 15),
        ("017", 17),
        ("-7", -7),
        ("+7", 7),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("12:30", "12:30"),
        ("٣", "٣"),
        ("1.2.3", "1.2.3"),
        ("'5'", "5"),
        ('"true"', "true"),
        ("|\n  5", "5"),
        ("=", "="),
        ("[]", []),
        ("{}", {}),
        ("a: ", {"a": None}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("--- \na", "a"),
        ("x: &a [1]\ny: *a", {"x": [1], "y": [1]}),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(text).value
    assert found == value
    assert type(found) is type(value)


# -- what is refused -----------------------------------------------------------------


def bomb(levels: int, width: int) -> str:
    lines = (f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels))
    return "\n".join(["a0: &a0 [x, x]", *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", r"1: the tag '.*python/object/apply:os.system' is not allowed"),
        ("a: !!python/name:os.system ''", "the tag .*python/name"),
        ("a: !!python/object/apply:os.system 'true'", "the tag .*python/object"),
        ("\na: !!binary 'aGk='", "2: the tag .*binary"),
        ("a: !!binary aGk=", "the tag .*binary"),
        ("a: !!set {x}", "the tag .*set"),
        ("a: !!omap [x: 1]", "the tag .*omap"),
        ("a: !mine 5", "the tag '!mine'"),
        ("a: !mine\n  b: 5", "the tag '!mine'"),
        ("!!str a: 5", "the tag .*str"),
        ("a: !!int '5'", "the tag .*int"),
        ("a: !!str 5", "the tag .*str"),
        ("a: 1\nb: 2\na: 3", r"3: the key 'a' occurs twice"),
        ("a: {b: 1, 'b': 2}", "the key 'b' occurs twice"),
        ("1: x", "the key 1 is not text; quote it"),
        ("true: x", "the key True is not text"),
        ("? [a]\n: x", r"the key \['a'\] is not text"),
        ("~: x", "the key None is not text"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
        ("a: 0x" + "F" * 5000, "a number of 5002 digits"),
        ("a: &x [*x]", "an alias contains itself"),
        ("a: &x {b: {c: *x}}", "an alias contains itself"),
        ("a: *x", "1: not valid YAML: .*undefined alias"),
        ("a: [1", "not valid YAML"),
        ("a: b: c", "1: not valid YAML: mapping values are not allowed"),
        ("a: 1\n  b: 2", "2: not valid YAML"),
        ("a\x00b", "not valid YAML"),
        ("a: 1\n---\nb: 2", "2: not valid YAML.*another document"),
        ("\t- a", "not valid YAML"),
        (bomb(12, 9), f"expands to more than {MAX_NODES:,} values"),
        (bomb(30, 2), f"expands to more than {MAX_NODES:,} values"),
        ("- x\n" * 200_000, f"{MAX_NODES}: not valid YAML: it has more than {MAX_NODES:,} values"),
        ("[" * 150 + "]" * 150, "nested more than 100 levels deep"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 50_000, "nested too deeply"),
        ("\n".join(" " * i + "a:" for i in range(150)), "nested more than 100 levels deep"),
    ],
)
def test_what_is_no_plain_data_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "f.yaml")
    assert str(caught.value).startswith("f.yaml:")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_plain_data_or_a_config_error(text: str) -> None:
    try:
        value = parse_yaml(text).value
    except ConfigError as error:
        assert str(error).startswith("<text>:")
    else:
        assert parse_yaml(dump_yaml(value)).value == value or "nan" in text.lower()


# -- places and files ------------------------------------------------------------------


def test_every_value_knows_its_line() -> None:
    tree = parse_yaml("a:\n  - b: 1\n    c:\n      - 2\n      - 3\nd: 4", "f.yaml")
    assert tree.place(("a", 0, "c", 1)) == "f.yaml:5: a[0].c[1]"
    assert tree.place(("d",)) == "f.yaml:6: d"
    assert tree.place(("a", 0, "missing", "deeper")) == "f.yaml:2: a[0].missing.deeper"
    assert tree.place(()) == "f.yaml:1"
    assert str(tree.error(("d",), "wrong")) == "f.yaml:6: d: wrong"


def test_a_key_path_is_shown_as_people_write_it() -> None:
    assert show_key(("stages", 0, "rrf", "of", 1)) == "stages[0].rrf.of[1]"
    assert show_key(()) == ""


def test_a_file_knows_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a: ü", encoding="utf-8")
    tree = read_yaml(path)
    assert tree.value == {"a": "ü"}
    assert tree.folder == tmp_path.resolve()
    assert tree.place(("a",)) == f"{path}:1: a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"a: \xff", "is not UTF-8 (byte 3)"),
        (b"#" * (MAX_BYTES + 1), f"has {MAX_BYTES + 1:,} bytes; a configuration has at most {MAX_BYTES:,}"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_folder_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
