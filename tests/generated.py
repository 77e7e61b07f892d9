"""Pages of which a part is written by a script."""


def between(page: str, begin: str, part: str, end: str) -> str:
    """Return the page with this part between its two marks."""
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{part}{end}{after}"
