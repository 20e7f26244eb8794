"""The way in: a plan of documents, or of tasks that somebody has planned already.

Takes a while for large ones, and so belongs into a worker thread. Above sits service/plans.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from microvm_orchestrator import errors
from microvm_orchestrator.model.plan import (
    MAX_DOCUMENTS_CHARS,
    MAX_TASKS,
    Document,
    DoneTask,
    Plan,
    PlanEdge,
    PlanTask,
    Why,
)
from microvm_orchestrator.plans import details
from microvm_orchestrator.plans.draft import Draft, Place, Problems, Reference, cut
from microvm_orchestrator.plans.markdown import Line, Scan, scan
from microvm_orchestrator.plans.order import in_order
from microvm_orchestrator.plans.sections import split

_WARNINGS_TOLD = 50


def plan_documents(documents: Sequence[Document], *, infer_files: bool) -> Plan:
    """Read documents and put their tasks in order.

    Raises: InvalidInput with the lines that are wrong; CycleFound; TooLarge.
    """
    names = Counter(document.name for document in documents)
    if twice := [name for name, count in names.items() if count > 1]:
        raise errors.InvalidInput(f"two documents are called {cut(twice[0])}")
    chars = sum(len(document.text) for document in documents)
    if chars > MAX_DOCUMENTS_CHARS:
        raise errors.TooLarge(
            f"the documents are {chars} characters, and the limit is {MAX_DOCUMENTS_CHARS}"
        )
    problems = Problems()
    drafts: list[Draft] = []
    warnings: list[str] = []
    for document in documents:
        scanned = scan(document.name, document.text)
        drafts += _read(scanned, problems)
        warnings += scanned.warnings
    return _plan(drafts, problems, warnings, infer_files=infer_files)


def plan_tasks(tasks: Sequence[PlanTask], *, infer_files: bool) -> Plan:
    """Put tasks in order that were planned elsewhere.

    Raises: InvalidInput, CycleFound, TooLarge.
    """
    drafts = [_given(task, number) for number, task in enumerate(tasks, 1)]
    return _plan(drafts, Problems(), [], infer_files=infer_files)


def _plan(
    drafts: Sequence[Draft], problems: Problems, warnings: list[str], *, infer_files: bool
) -> Plan:
    if len(drafts) > MAX_TASKS:
        raise errors.TooLarge(f"there are {len(drafts)} tasks, and the limit is {MAX_TASKS}")
    tasks = in_order(drafts, problems, infer_files=infer_files)
    waves: list[list[str]] = [[] for _ in range(max((task.wave for task in tasks), default=0))]
    for task in tasks:
        waves[task.wave - 1].append(task.key)
    skipped = [
        DoneTask(title=draft.task.title, document=draft.place.document, line=draft.place.line)
        for draft in drafts
        if draft.done and draft.place.document is not None and draft.place.line is not None
    ]
    rest = len(warnings) - _WARNINGS_TOLD
    told = warnings[:_WARNINGS_TOLD] + ([f"{rest} more"] if rest > 0 else [])
    return Plan(tasks=tasks, waves=waves, skipped=skipped, warnings=told)


# Documents


def _own_text(line: Line) -> bool:
    return details.detail(line) is not None


def _read(scanned: Scan, problems: Problems) -> list[Draft]:
    found = split(scanned, _own_text)
    if any(details.said(line) for line in scanned.front):
        scanned.warnings.append(
            f"{scanned.name}: the front matter is not read; say it in the text of a task"
        )
    drafts: list[Draft] = []
    for section in found.sections:
        draft = details.read(scanned.name, section, problems)
        if draft is None:
            place = Place(scanned.name, section.line)
            scanned.warnings.append(f"{place}: a task that says nothing was left out")
        else:
            drafts.append(draft)
    return drafts


# Plans


def _given(task: PlanTask, number: int) -> Draft:
    first = next((line.strip() for line in task.text.split("\n") if line.strip()), "")
    title = task.title or cut(first, details.MAX_TITLE)
    place = Place(task.document, task.line, number)
    if not (title or task.key):
        raise errors.InvalidInput(f"{place}: it has neither a title nor a text")
    known = task.model_copy(update={"title": title, "text": task.text or title})
    after = (_reference(item, place) for item in task.depends_on)
    kept = tuple(reference for reference in after if reference is not None)
    return Draft(place, known, title, str(number), kept)


def _reference(item: str | PlanEdge, place: Place) -> Reference | None:
    match item:
        case str():
            return Reference(item, place)
        case PlanEdge(why=Why.OVERLAP):
            # The files say it anew, if it is still so.
            return None
        case PlanEdge():
            return Reference(item.task, place, item.because)
