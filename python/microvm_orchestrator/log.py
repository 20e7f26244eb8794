"""What the daemon says on stderr: one event a line, for people on a terminal, else as JSON.

Every line takes one road, ours (`log.get(__name__).info("task_claimed", task=...)`) and that of
libraries that use `logging`: through the root logger's only handler. Because the root has a
handler, a library's `logging.basicConfig` does nothing. Values bound with `structlog.contextvars`
are part of each line of their context. Tracebacks show no local variables: those hold secrets.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Literal, TextIO

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]

# At info these tell each request they make or serve; the audit log and the metrics do that.
_CHATTY = ("httpx2", "httpcore2", "mcp", "uvicorn.access")


def get(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module; the name becomes the line's `logger`."""
    return structlog.stdlib.get_logger(name)


def configure(level: Level, form: Format, stream: TextIO | None = None) -> None:
    """Send every line of this process from `level` on to `stream` (stderr), replacing what was set.

    Call it before anything of `mcp` is made.
    """
    out: TextIO = sys.stderr if stream is None else stream
    console = form == "console" or (form == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _timestamp(console=console),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # modules get theirs on import, before this is called
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(colors=out.isatty(), console=console),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def _timestamp(*, console: bool) -> Processor:
    if console:
        return structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    return structlog.processors.TimeStamper(fmt="iso", utc=True, key="at")


def _renderers(*, colors: bool, console: bool) -> list[Processor]:
    if console:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    return [
        structlog.processors.format_exc_info,
        _event_first,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]


def _event_first(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Order a line as one reads it: when, how bad, what; then the rest as it came."""
    head = {key: line.pop(key) for key in ("at", "level", "event") if key in line}
    return {**head, **line}
