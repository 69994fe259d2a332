"""The judgement on the peers' results: what is a failure of ours, what is excused, which exception is stale."""

import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "peers"))
pytestmark = pytest.mark.newest

import run as peers  # noqa: E402
from run import Result  # noqa: E402


def result(suite, test, status):
    return Result(suite, test, status, "an error" if status == "failed" else "")


RESULTS = [
    result("ChatQwen2Test", "test_both", "failed"),
    result("NativeInternVLTest", "test_both", "failed"),
    result("ChatQwen2Test", "test_ours", "failed"),
    result("NativeInternVLTest", "test_ours", "passed"),
    result("ChatQwen2Test", "test_alone", "failed"),
    result("ChatQwen2Test", "test_fine", "passed"),
    result("NativeInternVLTest", "test_fine", "passed"),
    result("TokenizerTest", "test_blanks", "failed"),
]
OURS, BLANKS = RESULTS[2], RESULTS[7]


def test_what_the_native_model_passes_and_ours_fails():
    assert peers.judge(RESULTS, [], "5.24.0").failures == [OURS, BLANKS], "nothing native beside the tokenizer"


def test_an_exception_excuses_or_is_stale():
    excuse = {"suite": "Chat*", "test": "test_ours", "reason": "a reason"}
    fine = {"suite": "Chat*", "test": "test_fine", "reason": "a reason"}
    elsewhere = {"suite": "Token*", "test": "*", "reason": "a reason", "releases": ["5.23.0"]}
    not_run = {"suite": "Vision*", "test": "test_other", "reason": "a reason"}
    judgement = peers.judge(RESULTS, [excuse, fine, elsewhere, not_run], "5.24.0")
    assert judgement.failures == [BLANKS]
    assert judgement.excused == [OURS]
    assert judgement.stale == [fine], "what did not run is not stale"


def test_the_table_has_the_native_counts_beside_ours():
    lines = peers.table(RESULTS).splitlines()
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "ChatQwen2Test 1 / 3 / 0 NativeInternVLTest 2 / 1 / 0",
        "TokenizerTest 0 / 1 / 0 -",
    ]


def test_a_report_is_read(tmp_path):
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite><testcase classname="suite_text.InternLM2Test" name="test_a"/>'
        '<testcase classname="suite_text.InternLM2Test" name="test_b"><failure message="two&#10;lines"/></testcase>'
        '<testcase classname="suite_text.InternLM2Test" name="test_c"><skipped message="no GPU"/></testcase>'
        '<testcase classname="suite_text.InternLM2Test" name="test_b"/>'
        '<testcase classname="" name="suite_model"><error message="collection failure"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert peers.read(tmp_path / "report.xml") == [
        Result("InternLM2Test", "test_a", "passed", ""),
        Result("InternLM2Test", "test_b", "failed", "two lines"),
        Result("InternLM2Test", "test_c", "skipped", ""),
        Result("", "suite_model", "failed", "collection failure"),
    ]


@pytest.mark.parametrize("release", ["5.23.0", "5.24.0"])
def test_each_exception_has_its_reason(release):
    entries = peers.exceptions()
    assert all(set(entry) <= {"suite", "test", "reason", "releases"} for entry in entries)
    assert all(len(entry["reason"]) > 20 for entry in entries)
    assert len([entry for entry in entries if release in entry.get("releases", [release])]) <= 20
