"""What the figures say: tables, sentences and charts, made when the results are written.

The page shows what is made here and adds no figure of its own. Each sentence takes its wording from
the figure that is in it: no sentence says who is ahead that would have to change with the next run.
"""

from docs._ext.record.seals import seal
from docs._ext.record.words import enumerated
from tests.bench import UNFINISHED, charts
from tests.bench.rows import (
    BARE,
    BEFORE,
    BOUND,
    CALLERS,
    CHANNELS,
    CONNECTIONS,
    DJANGO,
    GREEN,
    IDLE,
    KEPT,
    LATENCIES,
    NATIVE,
    OURS,
    PLAIN,
    POOL,
    ROWS,
    SOCKETS,
    TASK,
    THREADS,
    TO_THREAD,
)

#: Ratios between these are no difference: two processes of one program differ by as much.
SAME = 0.97, 1.03
_SPREAD = "by less than the rounds differ among each other"
_DJANGO = (
    "nine tenths of the instructions of a query are Django's and psycopg's own, which run as before"
)
_HANDLER = (
    "most of a request is Django's handler and asgiref, which make objects for each call, as before"
)
#: Why a mark was missed in the recorded run: (row, what it is held against), the reason.
CAUSES: dict[tuple[str, str], str] = {
    ("orm", (GREEN, NATIVE)): _DJANGO,
    ("orm", (GREEN, BEFORE)): _DJANGO,
    ("orm-2", (GREEN, NATIVE)): _SPREAD,
    ("orm-5", CHANNELS): _SPREAD,
    ("orm-10", (GREEN, BEFORE)): _DJANGO,
    ("delay", "p99_ms"): (
        "threads hand the interpreter to each other between their queries, and the loop gets it in "
        "between with luck only; a shorter switch interval changes nothing, fewer threads do less"
    ),
    ("delay", (GREEN, "p99_ms")): (
        "a call that begins runs to its first wait, some 0.3 ms, and several may begin in a turn"
    ),
    ("http", (GREEN, POOL)): _HANDLER,
    ("http", (GREEN, BEFORE)): _HANDLER,
}
UNKNOWN = "not known yet"
# The rows that show a growth.
BY_CALLERS = ["orm" if each == 50 else f"orm-{each}" for each in CALLERS]
BY_CONNECTIONS = [f"connections-{each}" for each in CONNECTIONS]
# The rows of a chart of lines differ by this, which is said as the key says.
KEYS = {"callers": "callers", "connections": "connections", "ms of latency": "latency"}
#: From here on it is 'times as many', and below it 'per cent more'.
TIMES = 1.5
#: Rounds of a run that is published.
ROUNDS = 20
FOLDED = "The figures as a table"
UNITS = {"kib": "KiB", "p50_ms": "ms, median", "p99_ms": "ms, 99th percentile"}


class Results:
    """The results, and how to speak of them.

    A row that was not measured, and a contestant that did not finish, is a :exc:`KeyError`: what
    would need it is left out.
    """

    def __init__(self, report):
        self.rows = report["rows"]

    def figure(self, row, name, key="calls_per_second"):
        """Return the median of one figure."""
        return self.rows[row]["contestants"][name][key]["median"]

    def ratio(self, row, other):
        """Return how many times what *other* makes ormbridge makes."""
        return self.rows[row]["contestants"][other]["ratio"]["median"]

    def measured(self, *names):
        """Return those of the rows that were measured."""
        found = [name for name in names if name in self.rows]
        if not found:
            raise KeyError(names)
        return found


def finished(row):
    """Return the figures of those contestants of *row* that have some."""
    return {name: one for name, one in row["contestants"].items() if UNFINISHED not in one}


def unfinished(found, names, axis):
    """Say who did not finish which of the rows called *names*, as the end of a sentence on them."""
    by_name = {}
    for row in (found.rows[name] for name in names):
        for name in row["contestants"].keys() - finished(row).keys():
            by_name.setdefault(name, []).append(f"{row[KEYS[axis]]:,}")
    return "".join(
        f" {name} {UNFINISHED} with {enumerated(points)} {axis}."
        for name, points in sorted(by_name.items())
    )


def versus(ratio, other, unit=""):
    """Say how *ratio* compares: '2.2 times as many requests as plain ASGI'."""
    low, high = SAME
    unit = f" {unit}" if unit else ""
    if low <= ratio <= high:
        return f"about as many{unit} as {other}"
    if ratio < 1:
        return f"{100 * (1 - ratio):.0f} % fewer{unit} than {other}"
    return f"{more(ratio)}{unit} {'as' if ratio >= TIMES else 'than'} {other}"


def more(ratio):
    """Say how much more a ratio of more than 1 is."""
    return f"{ratio:.1f} times as many" if ratio >= TIMES else f"{100 * (ratio - 1):.0f} % more"


def family(name, row):
    """Return what a row is about, and where it is one of several, which of them it is."""
    said = {
        "noop": "a call by 50 callers",
        "one": "a call by one caller",
        "http": "a request",
        "startproject": "a request through the middleware of startproject",
        "three": "a transaction of three queries",
        "websocket": "a message on one socket",
        "websockets": "a message on 50 sockets",
        "rows": "a million rows",
        "busy": "100,000 rows for a caller that is busy, too",
    }
    if name in said:
        return said[name], None
    if "connections" in row:
        return "a query with 5 ms of latency; connections:", row["connections"]
    if row.get("latency"):
        return "a query by 50 callers; ms of latency:", row["latency"]
    return "a query; callers:", row["callers"]


def ahead_by(cases):
    """Return one phrase for each of *cases*: {what: {which: how many times as much}}."""
    for what, found in cases.items():
        least, most = more(min(found.values())), more(max(found.values()))
        which = "" if None in found else f" {enumerated([f'{each:,}' for each in sorted(found)])}"
        yield f"{what}{which}: {least}" + f" to {most}" * (least != most)


def count(number, noun):
    """Return '1 caller', '10,000 callers'."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def differs(found):
    """Return how many KiB more an idle socket takes with the middleware."""
    return found.figure("idle", OURS, "kib") - found.figure("idle", SOCKETS, "kib")


# --- the sentences ---


def request(found):
    """Say what a request gains."""
    pool = versus(found.ratio("http", POOL), f"with {POOL}", "requests a second")
    plain = versus(found.ratio("http", PLAIN), f"with {PLAIN}")
    return f"A request that makes one query: {pool}, and {plain}."


def query(found):
    """Say what a query gains."""
    fifty = versus(found.ratio("orm", CHANNELS), f"with {CHANNELS}", "queries a second")
    one = versus(found.ratio("orm-1", CHANNELS), f"with {CHANNELS}")
    return f"A query: {fifty} where there are 50 callers, and {one} where there is one."


def call(found):
    """Say what a call gains."""
    channels = versus(found.ratio("noop", CHANNELS), f"with {CHANNELS}", "calls a second")
    thread = versus(found.ratio("noop", TO_THREAD), f"with {TO_THREAD}")
    cpu = [found.figure("noop", each, "cpu_us_per_call") for each in (OURS, CHANNELS)]
    return (
        f"A call that does nothing, 50 callers: {channels}, and {thread}. It keeps the processor "
        f"busy for {cpu[0]:.0f} µs, and with {CHANNELS} for {cpu[1]:.0f} µs."
    )


def growth(found):
    """Say how the query goes with more callers."""
    names = found.measured(*BY_CALLERS)
    ratios = {
        found.rows[name]["callers"]: found.ratio(name, CHANNELS)
        for name in names
        if {OURS, CHANNELS} <= finished(found.rows[name]).keys()
    }
    ends = min(ratios, key=ratios.get), max(ratios, key=ratios.get)
    least, most = (f"{versus(ratios[each], CHANNELS)} ({count(each, 'caller')})" for each in ends)
    return (
        f"From {min(ratios)} to {max(ratios):,} callers ormbridge makes, where that is least, "
        f"{least}, and where it is most, {most}.{unfinished(found, names, 'callers')}"
    )


def bound_of(found):
    """Say how far the query is from plain threads."""
    made = versus(found.ratio("orm", BOUND), f"ten {BOUND}", "queries")
    return f"With 50 callers ormbridge makes {made} that loop over the query with no event loop."


def green(found):
    """Say what the event loop's own thread gains, and what it costs the loop."""
    rows = ("orm", "orm-10", "http", "startproject")
    query, ten, made, middleware = (1 / found.ratio(row, GREEN) for row in rows)
    late = [f"{found.figure('delay', each, 'p99_ms'):.1f} ms" for each in (GREEN, OURS)]
    return (
        f"On the event loop's own thread: {versus(query, 'on threads', 'queries a second')} with "
        f"50 callers, {versus(ten, 'on threads')} with 10. Of requests that make one query, "
        f"{versus(made, 'on threads', 'a second')}; with the middleware of startproject, "
        f"{versus(middleware, 'on threads')}. While 50 callers make the "
        f"query, the loop is late by {late[0]} at the 99th percentile, and by {late[1]} with "
        "threads."
    )


def latency(found):
    """Say that latency is what bounds the query."""
    said = []
    names = found.measured(*(f"latency-{each}" for each in LATENCIES if each > 1))
    for name in names:
        delay = found.rows[name]["latency"]
        ours, bound = (f"{found.figure(name, each):,.0f}" for each in (OURS, BOUND))
        most = f"{1000 * THREADS / delay:,.0f} queries a second with {delay} ms"
        said.append(f"{most}, of which {OURS} makes {ours}, and {BOUND} make {bound}")
    return (
        f"{THREADS} connections answer at most {THREADS} / latency: {'; '.join(said)}."
        f"{unfinished(found, names, 'ms of latency')}"
    )


def connections(found):
    """Say how many connections help."""
    names = found.measured(*BY_CONNECTIONS)
    rows = {found.rows[name]["connections"]: finished(found.rows[name]).get(OURS) for name in names}
    ours = {number: figures for number, figures in rows.items() if figures}
    made = {number: figures["calls_per_second"]["median"] for number, figures in ours.items()}
    most, fewest = max(made), min(made)
    enough = min(each for each in made if made[each] >= 0.9 * max(made.values()))
    busy = made[enough] * ours[enough]["cpu_us_per_call"]["median"] / 1e6
    on_most = "the most there were" if enough == most else f"more, up to {most}, bring under 10 %"
    said = (
        f"With 5 ms of latency and 200 callers ormbridge makes {made[fewest]:,.0f} queries a "
        f"second on {count(fewest, 'connection')} and {made[enough]:,.0f} on {enough}: {on_most}."
    )
    said += f" On {enough} the process keeps {100 * busy:.0f} % of a processor busy."
    if max(rows) < ROWS[names[-1]]["connections"]:
        said += f" The server had no more than {max(rows)} to give."
    return said + unfinished(found, names, "connections")


def delay(found):
    """Say how late the loop is."""
    row = found.rows["delay"]["contestants"]
    said = [
        f"{name} {UNFINISHED}"
        if UNFINISHED in one
        else f"{name} {one['p50_ms']['median']:.1f} and {one['p99_ms']['median']:.1f} ms"
        for name, one in row.items()
    ]
    return (
        "While 50 callers make the query, a timer of 1 ms on the same loop is late by, median and "
        f"99th percentile: {enumerated(said)}."
    )


def waiting(found):
    """Say what a call that waits takes."""
    row = found.rows["waiting"]["contestants"]
    said = [
        f"{name} {UNFINISHED}" if UNFINISHED in one else f"{name} {one['kib']['median']:.1f} KiB"
        for name, one in row.items()
    ]
    return f"A call that waits for a thread, of 10,000 that do: {enumerated(said)}."


def idle(found):
    """Say what an idle socket takes."""
    more, ours = differs(found), found.figure("idle", OURS, "kib")
    return (
        f"A socket that is open and idle, of 10,000: {ours:.1f} KiB with the middleware, "
        f"{abs(more):.1f} KiB {'more' if more >= 0 else 'less'} than without it."
    )


def message(found):
    """Say what a message gains."""
    bare = "a consumer that closes no connections at all"
    said = []
    for name in ("websocket", "websockets"):
        plain, nothing = found.ratio(name, SOCKETS), found.ratio(name, BARE)
        said.append(f"{versus(plain, SOCKETS)}, and {versus(nothing, bare)}")
    return f"A message that needs no database: on one socket {said[0]}; on 50, {said[1]}."


def rows(found):
    """Say what a large result gains."""
    table = found.rows["rows"]["contestants"]
    ours, django = (f"{table[each]['peak_mib']['high']:,.0f} MiB" for each in (OURS, DJANGO))
    free, busy = (versus(found.ratio(each, DJANGO), f"with {DJANGO}") for each in ("rows", "busy"))
    return (
        f"A loop over a million rows with stream() gets {free} in a second. The process has {ours} "
        f"of memory at the most, and {django} with {DJANGO}. Where the caller is busy between "
        f"rows, it gets {busy}."
    )


def kept(found):
    """Say what becomes of connections that are kept without the bridge."""
    failed = found.figure("persistent", KEPT, "failed_percent")
    return f"Of 100 requests {failed:.0f} failed."


def ahead(found):
    """Say where others are ahead: all that are, in all rows."""
    by_name, table = {}, []
    for name, row in found.rows.items():
        what, which = family(name, row)
        if UNFINISHED in row["contestants"].get(OURS, {}):
            here = f"{titled(row)}: {OURS} {UNFINISHED}"
            table += [[other, here] for other in finished(row)]
            continue
        for other, figures in finished(row).items():
            if other == GREEN:
                continue
            ratio = 1 if "kib" in figures else figures.get("ratio", {"median": 1})["median"]
            if ratio < SAME[0]:
                cases = by_name.setdefault(other, {}).setdefault(what, {})
                cases[which] = 1 / ratio
    table += [[name, ". ".join(ahead_by(cases))] for name, cases in by_name.items()]
    for row, key, what in (
        ("delay", "p99_ms", "its loop is late by less at the 99th percentile"),
        ("waiting", "kib", "a call that waits takes less memory"),
        ("idle", "kib", "an idle socket takes less memory"),
    ):
        measured = finished(found.rows.get(row, {"contestants": {}}))
        for other, figures in measured.items() if OURS in measured else ():
            theirs, ours = figures[key]["median"], measured[OURS][key]["median"]
            if other not in (GREEN, IDLE, TASK) and theirs < SAME[0] * ours:
                unit = UNITS[key].partition(",")[0]
                table.append([other, f"{what}: {theirs:.1f} {unit}, and {ours:.1f} {unit} here"])
    return {"head": ["who", "is ahead"], "rows": table or [["nobody", "in any row"]]}


SENTENCES = {
    "request": request,
    "query": query,
    "call": call,
    "growth": growth,
    "bound": bound_of,
    "green": green,
    "latency": latency,
    "connections": connections,
    "delay": delay,
    "waiting": waiting,
    "idle": idle,
    "message": message,
    "rows-of-a-table": rows,
    "kept": kept,
}


# --- the tables ---


def shown(result):
    """Return the table of one row."""
    unit, known = result.get("unit", "call"), finished(result).values()
    kinds = [key for key in UNITS if any(key in figures for figures in known)]
    ratios = any("ratio" in figures for figures in known)
    fails = any(figures["failed_percent"]["median"] for figures in known)
    if "kib" in kinds:
        heads, ratios = ["way", UNITS["kib"]], False
    else:
        heads = ["way", f"{unit}s a second", f"CPU µs a {unit}", *(UNITS[kind] for kind in kinds)]
    heads += ["ormbridge to it"] * ratios
    heads += ["peak of memory"] * (unit == "row")
    heads += ["failed"] * fails
    table = []
    for name, figures in result["contestants"].items():
        if UNFINISHED in figures:
            said = f"{UNFINISHED}: {figures[UNFINISHED]}"
            table.append([name, said, *[""] * (len(heads) - 2)])
            continue
        cells = [name]
        if "kib" not in kinds:
            cells.append(f"{figures['calls_per_second']['median']:,.0f}")
            cells.append(f"{figures['cpu_us_per_call']['median']:,.1f}")
        cells += [f"{figures[kind]['median']:,.1f}" for kind in kinds]
        if ratios:
            ratio = figures.get("ratio")
            middle = ratio and f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            cells.append(middle or "")
        if unit == "row":
            cells.append(f"{figures['peak_mib']['high']:.0f} MiB")
        if fails:
            cells.append(f"{figures['failed_percent']['median']:.0f} %")
        table.append(cells)
    return {"head": heads, "rows": table}


def marks(result):
    """Yield what a row was to reach: against what, the mark, what was seen, and whether it did.

    Where somebody did not finish, nothing was seen, and nothing reached.
    """
    known, nothing = finished(result), "no figure"
    for who, key in ((OURS, "reach"), (GREEN, "green")):
        for other, wanted in result.get(key, {}).items():
            mark = f"at least {wanted:.2f} of {other}" + ", green" * (who == GREEN)
            name = (GREEN, other) if who == GREEN else other
            if known.keys() >= {OURS, who, other}:
                seen = ratio(known, other) / ratio(known, who)
                yield name, mark, f"{seen:.2f}", seen >= wanted
            else:
                yield name, mark, nothing, False
    without = result.get("without")
    for who, most in ((OURS, "most"), (GREEN, "green most")):
        for key, wanted in result.get(most, {}).items():
            mark = f"at most {wanted:.1f} {UNITS[key]}" + f" more than {without}" * bool(without)
            mark += ", green" * (who == GREEN)
            name = (GREEN, key) if who == GREEN else key
            if who in known and (not without or without in known):
                less = known[without][key]["median"] if without else 0
                seen = known[who][key]["median"] - less
                yield name, mark, f"{seen:.1f}", round(seen, 1) <= wanted
            else:
                yield name, mark, nothing, False


def ratio(known, other):
    """Return how many times what *other* makes ormbridge makes, of the *known* figures of a row."""
    return 1 if other == OURS else known[other]["ratio"]["median"]


def told(result):
    """Return the verdicts on a row, as lines."""
    return [
        f"{'reached' if well else 'missed'}: {seen}, wanted {mark}"
        for _, mark, seen, well in marks(result)
    ]


def goals(found):
    """Return a table of all that was to be reached, with the cause where it was missed."""
    table = [
        [
            titled(result),
            mark,
            seen,
            "reached" if well else f"missed: {CAUSES.get((name, other), UNKNOWN)}",
        ]
        for name, result in found.rows.items()
        for other, mark, seen, well in marks(result)
    ]
    return {
        "head": ["row", "to reach", "seen", "verdict"],
        "rows": table,
        "fold": "What was to be reached, row by row",
    }


def titled(result):
    """Return the title of a row, with what its points differ by."""
    if "connections" in result:
        return f"{result['title']}, {count(result['connections'], 'connection')}"
    return result["title"]


def everything(found):
    """Return one table of all rows."""
    table = []
    for result in found.rows.values():
        head, lines = shown(result).values()
        for name, *cells in lines:
            if UNFINISHED in result["contestants"][name]:
                table.append([titled(result), name, cells[0], "", ""])
                continue
            figures = dict(zip(head[1:], cells, strict=True))
            rate = next((f"{value} {key}" for key, value in figures.items()), "")
            others = "; ".join(
                f"{value} {key}"
                for key, value in list(figures.items())[1:]
                if key != "ormbridge to it"
            )
            table.append([titled(result), name, rate, figures.get("ormbridge to it", ""), others])
    head = ["row", "way", "median", "ormbridge to it (middle half)", "also"]
    return {"head": head, "rows": table, "fold": "All rows"}


def reached(found):
    """Say how many marks were reached."""
    verdicts = [well for name, row in found.rows.items() for *_, well in marks(row)]
    missed = len(verdicts) - sum(verdicts)
    which = "all were reached" if not missed else f"{missed} {were(missed)} missed"
    return f"{count(len(verdicts), 'mark')} {were(len(verdicts))} set before the run; {which}."


def were(number):
    """Return the verb for *number* of things."""
    return "was" if number == 1 else "were"


def is_whole(report):
    """Say whether this is a run to publish: one of 20 rounds."""
    return max(row["rounds"] for row in report["rows"].values()) >= ROUNDS


def unexplained(report):
    """Return what was missed without a cause in CAUSES: rows, and what they are held against."""
    return [
        (name, other)
        for name, row in report["rows"].items()
        for other, _, _, well in marks(row)
        if not well and (name, other) not in CAUSES
    ]


def machine(report):
    """Return sentences on what the figures depend on."""
    versions = [f"Python {report['python']}"]
    versions += [f"{name} {version}" for name, version in report["packages"].items()]
    if "postgresql" in report:
        versions.append(f"PostgreSQL {report['postgresql']}")
    took = sum(row["took"] for row in report["rows"].values()) / 60
    said = (
        f"Measured on {report['date']}, on {report['cpus']} CPUs ({report['processor']}, "
        f"{report['system']}, {report['memory_gib']} GiB) that the database shares, with "
        f"{enumerated(versions)}, on the event loop of {report['loop']}. The load of the machine "
        f"was {report['load']:.1f} when it began; all took {took:.0f} minutes."
    )
    if not is_whole(report):
        said += " It was a short run, to try the benchmark out: take no figure from it."
    if report.get("before"):
        said += f" The build before is {report['before']}."
    return said


# --- the charts ---


def bars(found, title, groups, words):
    """Return a chart of bars, and its table; each group is (heading, unit, row, key, names)."""
    drawn, table = [], []
    for heading, unit, row, key, names in groups:
        known, those = finished(found.rows[row]), found.rows[row]["contestants"]
        values = {
            each: known[each][key]["median"] if each in known else None
            for each in names
            if each in those and each != BEFORE
        }
        drawn.append((heading, unit, values))
        table += [[heading, name, charts.label(value, unit)] for name, value in values.items()]
    return {
        "svg": charts.bars(title, words, drawn),
        "fold": FOLDED,
        "head": ["what", "way", "median"],
        "rows": table,
    }


def lines(found, names, title, axis, words, **options):
    """Return a chart of lines, and its table: a point for each row, a line for each contestant.

    :param axis: by what the rows differ: one of `KEYS`.
    :param options: ``log``, and ``bound``: the name of a line that is computed, and its figures.
    """
    if len(names) < 2:
        raise KeyError(names)
    key = KEYS[axis]
    points = [found.rows[name][key] for name in names]
    series = {}
    for each in found.rows[names[-1]]["contestants"]:
        if each == BEFORE:
            continue
        known = [finished(found.rows[name]).get(each) for name in names]
        series[each] = [one and one["calls_per_second"]["median"] for one in known]
    series |= options.get("bound", {})
    table = [
        [
            f"{found.rows[name][key]:,}",
            *(
                f"{values[i]:,.0f}"
                if values[i]
                else UNFINISHED * (UNFINISHED in found.rows[name]["contestants"].get(each, {}))
                for each, values in series.items()
            ),
        ]
        for i, name in enumerate(names)
    ]
    return {
        "svg": charts.lines(title, words, axis, points, series, log=options.get("log", False)),
        "fold": FOLDED,
        "head": [axis, *series],
        "rows": table,
    }


def gains(found):
    """Draw what is gained in a request, a query and a call."""
    words = " ".join((request(found), query(found), call(found)))
    return bars(
        found,
        "How many a second, with 50 callers",
        [
            (
                "A request that makes one query",
                "/s",
                "http",
                "calls_per_second",
                [PLAIN, POOL, OURS, GREEN],
            ),
            ("A query", "/s", "orm", "calls_per_second", [CHANNELS, NATIVE, OURS, GREEN]),
            (
                "A call that does nothing",
                "/s",
                "noop",
                "calls_per_second",
                [CHANNELS, TO_THREAD, OURS],
            ),
        ],
        words,
    )


def ways(found):
    """Draw the query, made in all ways there are."""
    names = found.rows["orm"]["contestants"]
    title = f"Queries a second, 50 callers, {THREADS} connections"
    known = finished(found.rows["orm"])
    ordered = sorted(
        names, key=lambda each: -known[each]["calls_per_second"]["median"] if each in known else 0
    )
    return bars(found, title, [("", "/s", "orm", "calls_per_second", ordered)], bound_of(found))


def callers(found):
    """Draw the query by callers."""
    names = found.measured(*BY_CALLERS)
    return lines(found, names, "Queries a second, by callers", "callers", growth(found))


def by_latency(found):
    """Draw the query by latency, and what it is at most."""
    names = found.measured(*(f"latency-{each}" if each else "orm" for each in LATENCIES))
    most = [
        1000 * THREADS / found.rows[name]["latency"] if name != "orm" else None for name in names
    ]
    return lines(
        found,
        names,
        "Queries a second, by latency; 50 callers",
        "ms of latency",
        latency(found),
        log=True,
        bound={f"{THREADS} / latency": most},
    )


def by_connections(found):
    """Draw the query by connections."""
    names = found.measured(*BY_CONNECTIONS)
    title = "Queries a second, by connections; 200 callers, 5 ms of latency"
    return lines(found, names, title, "connections", connections(found))


def lateness(found):
    """Draw how late the loop is."""
    row = list(found.rows["delay"]["contestants"])
    groups = [
        ("99th percentile", " ms", "delay", "p99_ms", row),
        ("median", " ms", "delay", "p50_ms", row),
    ]
    return bars(found, "How late a timer of 1 ms is; less is better", groups, delay(found))


def memory(found):
    """Draw the memory of what waits."""
    groups = [
        ("A call that waits", " KiB", "waiting", "kib", list(found.rows["waiting"]["contestants"])),
        (
            "A socket that is open and idle",
            " KiB",
            "idle",
            "kib",
            list(found.rows["idle"]["contestants"]),
        ),
    ]
    title = "Memory, of 10,000 that wait; less is better"
    return bars(found, title, groups, f"{waiting(found)} {idle(found)}")


CHARTS = {
    "gains": gains,
    "ways": ways,
    "callers": callers,
    "by-latency": by_latency,
    "by-connections": by_connections,
    "lateness": lateness,
    "memory": memory,
}


def with_words(report):
    """Return *report* with what it says: its sentences, its tables and its charts, sealed."""
    found = Results(report)
    words = {"machine": machine(report), "reached": reached(found)}
    tables = {"goals": goals(found), "ahead": ahead(found), "everything": everything(found)}
    tables |= {name: shown(result) for name, result in found.rows.items()}
    for known, made in ((SENTENCES, words), (CHARTS, tables)):
        for name, make in known.items():
            try:
                made[name] = make(found)
            except KeyError:  # a row was not measured: a page that needs it says so
                continue
    words = {name: said.replace(" %", "\N{NO-BREAK SPACE}%") for name, said in words.items()}
    report = {key: value for key, value in report.items() if key != "seal"}
    report |= {"sentences": words, "shown": tables}
    return {**report, "seal": seal(report)}
