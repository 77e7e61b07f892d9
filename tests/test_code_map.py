"""The code map names symbols that there are, in the files where they are."""

import code_map
import pytest


def test_the_code_map_is_that_of_the_code() -> None:
    page = code_map.PAGE.read_text(encoding="utf-8")
    assert page == code_map.written(page), "run: python tests/code_map.py"


@pytest.mark.parametrize(
    ("path", "error"), [("bandits.selector:Gone", AttributeError), ("bandits.gone:X", ImportError)]
)
def test_a_name_that_is_gone_is_an_error(path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        code_map.place(path)
