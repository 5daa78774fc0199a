"""The memory table of docs/memory.md is the one that the released sizes give."""

from scripts import memory_table


def test_the_page_holds_the_computed_table():
    text = memory_table.PAGE.read_text(encoding="utf-8")
    found = text.partition(memory_table.START)[2].partition(memory_table.END)[0].strip()
    assert found == memory_table.table(), "run: python -m scripts.memory_table --write"


def test_cells_follow_from_the_sizes():
    bf16, float8 = memory_table.weights()
    assert 28 < bf16 < 29.5
    assert float8 < 15
    assert memory_table.cell(80, 68, 120).startswith("bf16")
    assert memory_table.cell(24, 16, 28).startswith("fp8, 1")
    assert "streamed" in memory_table.cell(12, 16, 28)
    assert memory_table.cell(4, 68, 120) == "no"
