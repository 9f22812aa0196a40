"""YAML from strangers: values, lines, limits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.core.errors import Problem, RecipeError
from forge.recipes.document import MAX_FILE_BYTES, dump_yaml, load_document, read_document
from forge.recipes.yaml_reader import MAX_DEPTH, MAX_VALUES, parse_yaml

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc")), max_size=12)
    | st.sampled_from(["1e5", "1e-5", "010", "yes", "null", "~", ".nan", "12:30", "2024-01-01"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("ab:#- <", max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def refusal(path: Path) -> Problem:
    with pytest.raises(RecipeError) as caught:
        load_document(path)
    (problem,) = caught.value.problems
    assert problem.file == str(path)
    return problem


def write(folder: Path, data: bytes | str) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("18446744073709551615", 2**64 - 1),
        ("+3", 3),
        ("1.", 1.0),
        ("yes", True),
        ("Off", False),
        ("TRUE", True),
        ("tRue", "tRue"),
        ("~", None),
        ("none", "none"),
        ("12:30", "12:30"),
        ("0o17", "0o17"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'0.5'", "0.5"),
        ('"true"', "true"),
        ("-.inf", -math.inf),
        ("9" * 5000, math.inf),
    ],
)
def test_words_mean_what_recipes_mean(text: str, expected: object) -> None:
    value = parse_yaml(f"key: {text}\n", "f").value
    assert isinstance(value, dict)
    assert value["key"] == expected
    assert type(value["key"]) is type(expected)


def test_nan_is_a_float() -> None:
    value = parse_yaml("[.nan, .NaN]", "f").value
    assert isinstance(value, list)
    assert all(math.isnan(item) for item in value)


def test_every_value_has_the_line_where_it_stands(tmp_path: Path) -> None:
    text = "# top\na: 1\n\nb:\n  - x\n  - c: 2\n    d:\n      [3,\n       4]\n"
    lines = load_document(write(tmp_path, text)).lines
    assert lines == {
        (): 2,
        ("a",): 2,
        ("b",): 4,
        ("b", 0): 5,
        ("b", 1): 6,
        ("b", 1, "c"): 6,
        ("b", 1, "d"): 7,
        ("b", 1, "d", 0): 8,
        ("b", 1, "d", 1): 9,
    }


def test_a_missing_key_stands_where_its_holder_stands(tmp_path: Path) -> None:
    document = load_document(write(tmp_path, "a:\n  b: 1\n"))
    assert document.place(("a", "zz", 3)).line == 1
    assert document.place(("a", "b")).line == 2


def test_anchors_aliases_and_merge_keys(tmp_path: Path) -> None:
    text = "a: &p\n  x: 1\n  y: [2]\nb: *p\nc:\n  <<: *p\n  x: 3\nd:\n  <<: [*p, {z: 4}]\n"
    document = load_document(write(tmp_path, text))
    assert document.value == {
        "a": {"x": 1, "y": [2]},
        "b": {"x": 1, "y": [2]},
        "c": {"x": 3, "y": [2]},
        "d": {"x": 1, "y": [2], "z": 4},
    }
    assert document.lines[("b", "x")] == 2
    assert document.lines[("c", "x")] == 7
    assert document.lines[("c", "y")] == 3
    assert document.lines[("d", "z")] == 9


def test_keys_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    document = load_document(write(tmp_path, "1: a\ntrue: b\nnull: c\n'x': d\n"))
    assert document.value == {"1": "a", "true": "b", "null": "c", "x": "d"}


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert load_document(write(tmp_path, b"\xef\xbb\xbfa: 1\n")).value == {"a": 1}


def test_windows_line_ends_count_as_one(tmp_path: Path) -> None:
    assert load_document(write(tmp_path, b"a: 1\r\nb: 2\r\n")).lines[("b",)] == 2


def test_repeated_keys_are_all_reported_and_the_first_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    document = read_document(path)
    assert document.value == {"a": 1, "b": {"c": 1}}
    with pytest.raises(RecipeError) as caught:
        load_document(path)
    found = [(problem.line, problem.key) for problem in caught.value.problems]
    assert found == [(4, "b.c"), (5, "a")]
    assert "stands on line 1 already" in caught.value.problems[1].message


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"", 1, "empty"),
        (b"# only a comment\n", 1, "empty"),
        (b"a: 1\nb: \xff\n", 2, "0xff is not UTF-8"),
        (b"a: 1\nb: \x00\n", 2, "binary file"),
        (b"\x89PNG\r\n\x1a\n", 2, "binary file"),
        (b"a:\n\tb: 1\n", 2, "tab"),
        (b"a: [1, 2\nb: 3\n", 2, "not YAML"),
        (b"a: 'x\n", 1, "not YAML"),
        (b"a: 1\n b: 2\n", 2, "not YAML"),
        (b"a: 1\n---\nb: 2\n", 2, "second document"),
        (b"a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "is not allowed"),
        (b"a: !custom x\n", 1, "is not allowed"),
        (b"a: 1\n!!str b: 1\n", 2, "is not allowed"),
        (b"a: 1\nb: *nothing\n", 2, "nothing"),
        (b"a: &x [1, *x]\n", 1, "inside its own anchor"),
        (b"? [a, b]\n: 1\n", 1, "key must be text"),
        (b"a: 1\nb:\n  <<: 3\n", 3, "takes an alias of a mapping"),
        (b"a: 1\n&k b: 1\n", 2, "anchor on a key"),
    ],
)
def test_refuses_with_the_line(tmp_path: Path, data: bytes, line: int, message: str) -> None:
    problem = refusal(write(tmp_path, data))
    assert message in problem.message
    assert problem.line == line


def test_refuses_deep_nesting_without_recursing(tmp_path: Path) -> None:
    problem = refusal(write(tmp_path, "a: 1\nb: " + "[" * 500_000))
    assert f"deeper than {MAX_DEPTH}" in problem.message
    assert problem.line == 2


def test_refuses_nesting_built_from_aliases(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 60)]
    problem = refusal(write(tmp_path, "\n".join(lines)))
    assert f"deeper than {MAX_DEPTH}" in problem.message


@pytest.mark.parametrize("merge_key", [False, True])
def test_refuses_a_billion_laughs_quickly(tmp_path: Path, merge_key: bool) -> None:
    lines = ["a0: &a0 {x: 1, y: 2}" if merge_key else "a0: &a0 [1, 2]"]
    for i in range(1, 40):
        body = f"{{p{i}: *a{i - 1}, q{i}: *a{i - 1}}}" if merge_key else f"[*a{i - 1}, *a{i - 1}]"
        lines.append(f"a{i}: &a{i} {body}")
    if merge_key:
        lines.append("z:\n  <<: *a9")
    start = time.perf_counter()
    problem = refusal(write(tmp_path, "\n".join(lines)))
    assert f"more than {MAX_VALUES:,} values" in problem.message
    assert time.perf_counter() - start < 5


def test_refuses_more_values_than_any_recipe_has(tmp_path: Path) -> None:
    problem = refusal(write(tmp_path, "a: [" + "1," * (MAX_VALUES + 5) + "]"))
    assert "values" in problem.message


def test_refuses_large_missing_and_odd_files(tmp_path: Path) -> None:
    assert "1 MiB" in refusal(write(tmp_path, b"#" * (MAX_FILE_BYTES + 1))).message
    assert load_document(write(tmp_path, b"a: 1\n" + b"#" * (MAX_FILE_BYTES - 5))).value
    assert "does not exist" in refusal(tmp_path / "none.yaml").message
    assert "not a file" in refusal(tmp_path).message


@settings(deadline=None)
@given(values)
def test_what_is_dumped_reads_back(value: object) -> None:
    assert parse_yaml(dump_yaml({"key": value}), "f").value == {"key": value}


def problems_of(read: Callable[[], object]) -> tuple[Problem, ...]:
    try:
        read()
    except RecipeError as error:
        return error.problems
    return ()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_cause_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp(), data)
    assert all(problem.file == str(path) for problem in problems_of(lambda: load_document(path)))


@settings(deadline=None)
@given(st.text("ab:-[]{}&*!?|>'\"#%@,\n\t <1.", max_size=60))
def test_no_text_causes_another_error(text: str) -> None:
    lines = max(1, len(text.splitlines()) + 1)
    for problem in problems_of(lambda: parse_yaml(text, "f")):
        assert problem.line is not None
        assert 1 <= problem.line <= lines
