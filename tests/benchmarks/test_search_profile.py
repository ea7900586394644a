"""The profile of search runs, in miniature. The figures are for a quiet machine."""

import re

import pytest

from benchmarks import search_profile
from tests.conftest import mistake, run_here


@pytest.mark.parametrize(
    "arguments", [("--model", "tap"), ("--model", "clap", "--part", "index")], ids=["tap", "clap"]
)
def test_quick_run_divides_the_time_of_an_index_and_of_a_query(arguments, tmp_path):
    result = run_here(search_profile.main, "--quick", *arguments, "--work", str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    output = result.stdout
    assert re.search(r"an hour of recordings takes \d+ s, of processor time \d+ s", output)
    tables = output.split("| share |")[1:]
    expected = [("audio encoder", "mel front end"), ("text encoder",), ("text encoder",)]
    expected = expected[: 1 if "--part" in arguments else 3]
    for table, stages in zip(tables, expected, strict=True):
        rows = dict(re.findall(r"^\| (\S.*?) \| ([\d.]+) \|", table, re.M))
        assert set(stages) <= rows.keys()
        parts = sum(float(own) for name, own in rows.items() if name != "**all**")
        assert parts == pytest.approx(float(rows["**all**"]), abs=0.05 * len(rows))
    products = re.search(r"^\| audio encoder .*", tables[0], re.M)[0].split("|")[4]
    assert float(products) > 0  # negative control: operators are told apart
    assert float(re.search(r"^\| commit .*", tables[0], re.M)[0].split("|")[4]) == 0
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line():
    assert "--minutes 0: must be" in mistake(search_profile.main, "--minutes", "0")
    assert "--clips -1: must be" in mistake(search_profile.main, "--clips", "-1")
