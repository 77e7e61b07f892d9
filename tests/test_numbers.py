"""The numbers that documents quote are listed with their commands, and the cheap ones are printed again; the index."""

import pytest
import quoted_numbers as numbers

QUOTES = numbers.quotes()


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: f"{quote.file}: {quote.text[:40]}")
def test_a_quote_stands_in_its_document(quote):
    document = numbers.flat((numbers.ROOT / quote.file).read_text(encoding="utf-8"))
    assert numbers.flat(quote.text) in document
    assert numbers.NUMBER.search(numbers.flat(quote.text))


def test_every_interval_of_a_complete_section_is_listed():
    assert numbers.complete()
    assert not numbers.unlisted()


def test_the_index_leads_to_every_page():
    pages = {path.name for path in (numbers.ROOT / "docs").glob("*.md")} - {"index.md"}
    index = (numbers.ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert not {page for page in pages if f"]({page}" not in index}


@pytest.mark.parametrize("command", sorted({quote.command for quote in QUOTES if quote.page}))
def test_committed_pages_have_what_is_quoted(command, tmp_path):
    assert not numbers.check(command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted({quote.command for quote in QUOTES if quote.cheap}))
def test_cheap_commands_print_what_is_quoted(command, tmp_path):
    assert not numbers.check(command, tmp_path)


@pytest.mark.parametrize(
    ("text", "printed", "agree"),
    [
        ("−13.7 % [−17.9, −9.5]", "better: −13.71 % [−17.88, −9.53], 96 paired replicates", True),
        ("−13.7 % [−17.9, −9.5]", "better: −12.1 % [−17.9, −9.5], 96 paired replicates", False),
        ("−13.7 % [−17.9, −9.5]", "better: +13.7 % [−17.9, −9.5]", False),
        ("13 to 17 times", "is 13 to 17 times the left", True),
        ("13 to 17 times", "is 17 to 13 times the left", False),
        ("0 of 80", "0 of 80 replicates", True),
        ("3 of 80", "0 of 80 replicates", False),
    ],
)
def test_numbers_agree_up_to_a_processor(text, printed, agree):
    assert numbers.agrees(text, printed) == agree
