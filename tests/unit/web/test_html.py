from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from microvm_orchestrator.model.event import Event
from microvm_orchestrator.model.run import ConflictFile, MergeOutcome, MergeState, Result, RunRecord
from microvm_orchestrator.model.task import Task, TaskError, TaskProgress
from microvm_orchestrator.service.execs import OutputPiece
from microvm_orchestrator.service.runs import RunInfo, RunOutput
from microvm_orchestrator.web import views
from microvm_orchestrator.web.html import Html, cut, readable, tag
from microvm_orchestrator.web.views import Visitor

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = (
    "</title></pre><script>alert(1)</script><img src=x onerror=alert(2)> \"' onfocus='alert(3) &lt;"
    " javascript:alert(4) <!-- <![CDATA[ \x1b]0;owned\x07 \u202egnirts \ud800 ${7*7} {{7*7}}"
)


class Seen(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in {"meta", "link", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def task_of(text: str) -> Task:
    return Task.model_construct(
        task_id=text,
        key=text,
        group=text,
        title=text,
        kind="command",
        state="running",
        reason=text,
        priority=0,
        labels={text: text},
        role=None,
        capabilities=[],
        owner=text,
        worker=text,
        attempt=1,
        progress=TaskProgress.model_construct(fraction=0.5, message=text),
        created_at=AT,
        started_at=None,
        finished_at=None,
        description=text,
        input={text: text},
        run=None,
        waiting_for=[text],
        result=[text],
        error=TaskError.model_construct(code=text, message=text, detail=None),
    )


def page_of(text: str) -> str:
    """Draw a task of which everything is this text."""
    merge = MergeOutcome.model_construct(
        state=MergeState.CONFLICT,
        into=text,
        reason=text,
        conflicts=[ConflictFile.model_construct(path=text, kind=text, hunks=[])],
    )
    result = Result.model_construct(
        success=False, summary=text, exit_code=1, error=text, commits=[], files_changed=[]
    )
    run = RunRecord.model_construct(
        run_id=text, task_id=text, owner=text, merge=merge, result=result, started_at=AT
    )
    info = RunInfo.model_construct(task=task_of(text), run=run, saying=text)
    pieces = [
        OutputPiece.model_construct(channel=channel, offset=0, text=text)
        for channel in ("stdout", "stderr")
    ]
    said = RunOutput.model_construct(run_id=text, pieces=pieces, next=7, ended=False)
    event = Event.model_construct(
        seq=1, at=AT, kind="task.done", subject=text, group=text, actor=text, body={text: text}
    )
    output = views.output(said, f"{views.task_address(text)}/output")
    look = views.task_page(task_of(text), info, output, [], [event], "/live?after=x")
    return views.document(look, "/tasks", Visitor(text, "admin", session=True)).decode()


def shape(page: str) -> list[tuple[str, list[str]]]:
    return [(name, sorted(attributes)) for name, attributes in Seen(page).elements]


def test_what_guests_and_clients_say_is_text_wherever_it_stands() -> None:
    page = page_of(HOSTILE)
    seen = Seen(page)
    assert seen.open == []
    assert shape(page) == shape(page_of("plain"))
    scripts = [attributes for name, attributes in seen.elements if name == "script"]
    assert scripts == [{"src": "/static/pages.js", "defer": None}]
    assert all(
        str(attributes["href"]).startswith(("/", "#"))
        for _, attributes in seen.elements
        if "href" in attributes
    )
    assert "<script>alert(1)</script>" in seen.text
    assert "\\u{202e}gnirts" in seen.text


@given(st.text(st.characters(), min_size=1, max_size=40))
def test_no_text_changes_the_shape_of_a_page(text: str) -> None:
    assert shape(page_of(f"x{text}")) == shape(page_of("plain"))


@given(st.text())
def test_a_text_reads_as_it_was_but_for_what_nobody_would_see(text: str) -> None:
    told = Seen(tag("p", text).text).text
    assert told == readable(text).replace("\r\n", "\n")


def test_what_cannot_be_seen_stands_there_by_its_number() -> None:
    assert readable("a\x00\x1b[2J\u202eb\ud800\tc\n") == "a\\u{0}\\u{1b}[2J\\u{202e}b\\u{d800}\tc\n"
    assert readable("\x1b[31mred\x1b[0m\r\nnext") == "red\nnext"


def test_a_long_text_is_cut_and_says_so() -> None:
    assert cut("x" * 12, 10) == "xxxxxxxxxx … (2 more)"
    assert cut("x" * 10, 10) == "x" * 10


def test_an_element_without_content_has_no_end_and_an_attribute_can_be_left_out() -> None:
    assert tag("input", name='a"<', required=True, disabled=False, value=None) == Html(
        '<input name="a&quot;&lt;" required>'
    )
