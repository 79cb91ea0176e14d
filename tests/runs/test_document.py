"""The frame of pages."""

import json
import re

import pytest

from gossamer.errors import CheckpointError
from gossamer.runs.document import facts, picture, section, table, write_document

HOSTILE = '</script><b>"&'


def test_what_is_said_is_text_and_never_markup(tmp_path):
    body = section(HOSTILE, table((HOSTILE,), [(HOSTILE,)]), facts({HOSTILE: HOSTILE}), picture(b"png", HOSTILE))
    page = write_document(
        tmp_path / "a.html", HOSTILE, body, lead=HOSTILE, record={"name": HOSTILE}, command=HOSTILE
    ).read_text()
    assert "<b>" not in page
    assert page.count("</script>") == 1  # the record's own end
    record = re.search(r'<script type="application/json" id="record">(.*?)</script>', page)
    assert json.loads(record.group(1)) == {"name": HOSTILE}


def test_nothing_is_fetched_and_the_page_is_whole(tmp_path):
    page = write_document(
        tmp_path / "deep" / "a.html", "Title", section("", "text"), style="i {}", script="1;"
    ).read_text()
    assert "http" not in page
    assert (
        page.index("--series-7") < page.index("i {}") < page.index("</style>")
    )  # the page's own style has the last word
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n")
    assert "<h2>" not in page


def test_columns_are_left_where_asked():
    assert table(("a", "b"), [("1", "2")], left=(1,)).count("class=left") == 2


def test_a_record_with_nan_is_refused_before_a_file_is_touched(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_document(tmp_path / "a.html", "t", "", record={"value": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "a.html").mkdir()
    with pytest.raises(CheckpointError, match=r"a\.html"):
        write_document(tmp_path / "a.html", "t", "")
