"""Traces that go through the queue: the span of an attempt is a child of the span that enqueued its job.

Nothing of OpenTelemetry is imported here, since whoever traces has imported it: without it all of this does nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from cluster.error_text import last_line

if TYPE_CHECKING:
    from opentelemetry.trace import Span

COLUMN = "traceparent"
"""Of a job table, text, in the form of https://www.w3.org/TR/trace-context/. It need not be there."""
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


def current_traceparent() -> str | None:
    """Of the current span. None: there is none."""
    trace = _api()
    found = trace.get_current_span().get_span_context() if trace is not None else None
    if found is None or not found.is_valid:
        return None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def trace_id(traceparent: str) -> str:
    """32 hex digits; empty: it has not the form."""
    match = _FORM.fullmatch(traceparent)
    return match[1] if match else ""


def is_used() -> bool:
    """Somebody traces."""
    return _api() is not None


def begin_span(name: str, traceparent: str, attributes: Mapping[str, str | int]) -> Span:
    """The span of an attempt, which is the current one from here on in this context. Only where somebody traces."""
    trace = _api()
    context: Any = sys.modules["opentelemetry.context"]
    match = _FORM.fullmatch(traceparent)
    parent = None
    if match:
        flags = trace.TraceFlags(int(match[3], 16))
        sender = trace.SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags)
        parent = trace.set_span_in_context(trace.NonRecordingSpan(sender), context.Context())
    tracer = trace.get_tracer("jobcluster")
    span = tracer.start_span(name, parent or context.Context(), kind=trace.SpanKind.CONSUMER, attributes=attributes)
    context.attach(trace.set_span_in_context(span))
    return cast("Span", span)


def end_span(span: Span, outcome: str, error: BaseException | None, text: str | None = None) -> None:
    """outcome: as in the metrics. error: what the attempt raised; None: nothing. text: what is recorded of it; None: its own."""
    trace = _api()
    assert trace is not None
    span.set_attribute("jobcluster.outcome", outcome)
    if error is not None:
        told = None if text is None else {"exception.message": last_line(text), "exception.stacktrace": text}
        span.record_exception(error, told)
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(trace.StatusCode.ERROR, outcome)
    span.end()


def _api() -> Any:
    """opentelemetry.trace; None: nobody has imported it. Any: it need not be installed."""
    return sys.modules.get("opentelemetry.trace")
