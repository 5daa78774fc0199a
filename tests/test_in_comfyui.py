"""Runs tests/nodes, the tests that import ComfyUI's own modules, in the Python of the ComfyUI that was found.

One of them alone: ``python tests/test_in_comfyui.py nodes/test_loaders.py -k missing``.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # run as a script there is no conftest to do it

from comfy_host import find_comfyui, run_inside  # noqa: E402

TAIL = 150


def test_nodes_inside_comfyui(comfyui, tmp_path, inside_summary):
    report = tmp_path / "report.xml"
    status, output = run_inside(comfyui, ["nodes", f"--junitxml={report}", f"--basetemp={tmp_path / 'inside'}"])
    tail = "\n".join(output.splitlines()[-TAIL:])
    assert status == 0, f"pytest inside ComfyUI ended with status {status}:\n{tail}"
    assert executed(report) > 0, f"No test ran inside ComfyUI:\n{tail}"
    inside_summary.append(output.splitlines()[-1].strip("= "))


def executed(report) -> int:
    """Tests of a JUnit report that were not skipped."""
    suites = list(ElementTree.parse(report).iter("testsuite"))
    return sum(int(suite.get("tests")) - int(suite.get("skipped")) for suite in suites)


def test_skipped_tests_do_not_count_as_executed(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite tests="3" skipped="3" errors="0" failures="0"/></testsuites>')
    assert executed(report) == 0


if __name__ == "__main__":
    sys.exit(run_inside(find_comfyui(), sys.argv[1:] or ["nodes"], on_line=sys.stdout.write)[0])
