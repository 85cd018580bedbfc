"""
Write all metrics of a bridge for Prometheus, as text or as OpenMetrics.

Nothing is made before somebody asks: series come from plain integers at the scrape, in
slices between which the reactor serves clients.  Knows the library `prometheus_client`,
which is optional; must not know HTTP, nor what a metric means.

Series are bounded.  All labels have few values, whatever clients and servers do: servers are
those of the settings; methods are MCP's, all others being `_OTHER`; tools are those of
`metrics_tools`; a server has at most `MAX_OPERATIONS` methods and tools, each of them with at
most `MAX_ERRORS` errors, and `_OTHER` beyond; causes, reasons, statuses and states are
declared in code, or a number of few digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from io import BytesIO
from itertools import accumulate
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from mcpbridge.admin.metric_families import FAMILIES, Family, Numbers, Point
from mcpbridge.admin.server_numbers import read_servers
from mcpbridge.admin.view import BridgeView
from mcpbridge.counters import SECONDS_BOUNDS, Histogram
from mcpbridge.errors import NotSupported, ServerBusy
from mcpbridge.jsonrpc.sliced_parser import Slices
from mcpbridge.process_usage import Usages
from mcpbridge.shared_work import SharedWork
from mcpbridge.sliced_work import SlicedWork
from mcpbridge.web.content_negotiation import preferred

#: How many lines are written without a pause; each takes some 20 µs.
SLICE_LINES = 60
#: How many scrapes may wait for the one that is under way, in each format.
WAITING_SCRAPES = 20

#: The lines of one histogram: its buckets, their sum and their number.
HISTOGRAM_LINES = len(SECONDS_BOUNDS) + 3
_BOUNDS = (*map(str, SECONDS_BOUNDS), "+Inf")
_END = b"# EOF\n"


class _Format(NamedTuple):
    """A format of the library, with the module that writes it."""

    media: str
    content_type: str
    module: str
    #: What ends the document.
    end: bytes = b""


_TEXT = _Format(
    "text/plain", "text/plain; version=0.0.4; charset=utf-8", "prometheus_client.exposition"
)
_OPENMETRICS = _Format(
    "application/openmetrics-text",
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    "prometheus_client.openmetrics.exposition",
    _END,
)
_FORMATS = {each.media: each for each in (_TEXT, _OPENMETRICS)}


class Exposition:
    """
    Writes the metrics of one bridge.

    Scrapes that come while one is under way get what that one finds.  `load` imports a module
    of the library by name.
    """

    def __init__(
        self,
        view: BridgeView,
        clock: IReactorTime,
        load: Callable[[str], Any] = import_module,
    ) -> None:
        self._view = view
        self._load = load
        self._work = SlicedWork(clock)
        self._scrapes = {
            each: SharedWork(partial(self._begin, each), WAITING_SCRAPES)
            for each in _FORMATS.values()
        }

    async def text(self, accept: str) -> tuple[str, bytes]:
        """
        Return the content type and the document for a client with this `Accept`; text for
        one that accepts neither format.

        Raises `NotSupported` without the library, and `ServerBusy` beyond `WAITING_SCRAPES`.
        """
        form = _FORMATS[preferred(accept, [*_FORMATS]) or _TEXT.media]
        try:
            self._load(form.module)
        except ImportError as error:
            raise NotSupported(
                "metrics need the extra `metrics`: pip install 'mcpbridge[metrics]'"
            ) from error
        document = self._scrapes[form].join()
        if document is None:
            raise ServerBusy(f"{WAITING_SCRAPES} scrapes wait for the metrics already")
        return form.content_type, await document

    def _begin(self, form: _Format) -> Deferred[bytes]:
        def write(usages: Usages) -> Deferred[bytes]:
            return self._work.do(_document(self._view, usages, form, self._load))

        return self._view.usage().addCallback(write)


def _document(
    view: BridgeView, usages: Usages, form: _Format, load: Callable[[str], Any]
) -> Slices[bytes]:
    """Write all metrics, a moment's work at a time."""
    core = load("prometheus_client.core")
    generate = load(form.module).generate_latest
    numbers = Numbers(view, (yield from read_servers(view, usages)))
    yield
    # The bridge's own process; that is a family for each of its numbers.
    process = load("prometheus_client.process_collector").ProcessCollector(registry=None)
    # To join all parts at the end would take as long as several slices.
    document = BytesIO()
    document.write(_written(generate, process.collect()))
    for family in FAMILIES:
        yield
        first = True
        for part in _parts(family.points(numbers)):
            lines = _written(generate, [_metric(core, family, part)])
            document.write(lines if first else _without_header(lines))
            first = False
            yield
    document.write(form.end)
    return document.getvalue()


class _Collected(NamedTuple):
    """What the library expects of a registry."""

    metrics: Iterable[Any]

    def collect(self) -> Iterable[Any]:
        """Return metrics."""
        return self.metrics


def _written(generate: Callable[[Any], bytes], metrics: Iterable[Any]) -> bytes:
    """Return these metrics as the library writes them, without the end of the document."""
    return generate(_Collected(metrics)).removesuffix(_END)


def _without_header(lines: bytes) -> bytes:
    """Leave out what only the first part of a family has: its meaning and its type."""
    while lines.startswith(b"# "):
        lines = lines.partition(b"\n")[2]
    return lines


def _parts(points: Iterable[Point]) -> Iterator[list[Point]]:
    """Divide the points of a family into parts of `SLICE_LINES`; there is at least one."""
    part: list[Point] = []
    lines = 0
    for point in points:
        size = HISTOGRAM_LINES if isinstance(point[1], Histogram) else 1
        if part and lines + size > SLICE_LINES:
            yield part
            part, lines = [], 0
        part.append(point)
        lines += size
    yield part


def _metric(core: Any, family: Family, points: Sequence[Point]) -> Any:
    """Return points of a family as the library has them."""
    make = getattr(core, f"{family.kind.title()}MetricFamily")
    metric = make(family.name, family.text, labels=family.labels)
    for labels, value in points:
        values = [_readable(each) for each in labels]
        if isinstance(value, Histogram):
            counts = accumulate(value.buckets)
            buckets = list(zip(_BOUNDS, counts, strict=True))
            metric.add_metric(values, buckets, value.total)
        else:
            metric.add_metric(values, value)
    return metric


def _readable(text: str) -> str:
    """Return a text without what UTF-8 has no bytes for."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
