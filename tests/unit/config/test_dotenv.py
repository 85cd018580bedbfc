"""Files of environment variables."""

import pytest

from mcpbridge.config.dotenv import NotDotenv, parse_dotenv


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_file(newline: str) -> None:
    lines = [
        "# A comment",
        "",
        "  \t",
        "A=1",
        "export B = two words  # a comment",
        r'C="x\n\t\"q\" \$ \\ \d # none" # one',
        "D='a $b \\n",
        "second'",
        "E=",
        "F=a#b",
        "G= # nothing",
        "H=it's",
        "A.b-c=dots",
        'I="a',
        'b"',
        "A=2",
    ]
    assert parse_dotenv(newline.join(lines)) == {
        "A": "2",
        "B": "two words",
        "C": 'x\n\t"q" $ \\ \\d # none',
        "D": "a $b \\n\nsecond",
        "E": "",
        "F": "a#b",
        "G": "",
        "H": "it's",
        "A.b-c": "dots",
        "I": "a\nb",
    }


def test_a_file_without_variables() -> None:
    assert parse_dotenv("") == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("hush", 1),
        ("A=1\n\n# x\nhush", 4),
        ('A="hush', 1),
        ("A='1' hush", 1),
        ('A="1"hush', 1),
        ("1A=hush", 1),
        ("=hush", 1),
    ],
)
def test_a_line_that_is_not_an_assignment(text: str, line: int) -> None:
    with pytest.raises(NotDotenv) as caught:
        parse_dotenv(text)
    assert caught.value.line == line
    assert "hush" not in str(caught.value)
