"""The page of several searches: what each was asked, reached and cost, and what is noise.

What is compared is computed in side_by_side.py; here it is put into words, tables and plots.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, get_args

import yaml

from ich_ray.errors import ConfigError
from ich_ray.html_report.best_curves import best_curves
from ich_ray.html_report.html_page import Section, SourceText, Table, sheet
from ich_ray.html_report.style import SEARCH_COLORS, count, metric_name, moment, number, setting
from ich_ray.html_report.tables import cost_facts
from ich_ray.results import open_search
from ich_ray.side_by_side import Outcome, side_by_side
from ich_ray.storage import check_file, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from upath import UPath

    from ich_ray.results import SearchResult
    from ich_ray.side_by_side import ComparedPair, ComparedSearch, SideBySide
    from ich_ray.storage import Location

__all__ = ["page", "report_side_by_side"]

# A color each; of more nobody could tell the curves apart.
_MOST_SEARCHES = len(SEARCH_COLORS)
# What others wrote has no length that a page could count on.
_MOST_KEYS = 100
_WIDEST = 120
_LONGEST_NAME = 40
_LONGEST_TEXT = 400
_LONGEST_SPACE = 20_000


def report_side_by_side(searches: Sequence[Location], dataset: Location | None, out: UPath | None) -> UPath:
    """Write the page, whole or not at all, and return where it is.

    Args:
        searches: at least two; the others are compared with the first.
        dataset: see `side_by_side`.
        out: the file; if not given in `final/` of the first search.

    Raises:
        ConfigError: one is no search or given twice, or they are too many.
        IntegrityError: a file of one is damaged; it is named.
    """
    if not 2 <= len(searches) <= _MOST_SEARCHES:
        raise ConfigError(
            f"report: must be of 1 to {_MOST_SEARCHES} searches, got {len(searches)}; name others, or use "
            "`ich-ray results`"
        )
    found = [open_search(where) for where in searches]
    path = out or found[0].files.side_by_side
    check_file(path, "report")
    write_bytes(path, page(found, side_by_side(found, dataset)).encode())
    return path


def page(found: Sequence[SearchResult], compared: SideBySide) -> str:
    """The page as text."""
    places = _told_apart([one.search for one in compared.searches])
    names = [f"{at} · {place}" for at, place in enumerate(places, 1)]
    sections = [
        _reached(names, compared),
        _course(names, found),
        _noise(compared.pairs),
        _asked(names, found, compared.pairs),
        _best_trials(names, found, compared.searches),
        Section("cost", "What they cost", tables=[_rows_of("Of all trials", names, [*map(cost_facts, found)])]),
    ]
    eyebrow = f"Searches for intracranial-haemorrhage detectors on head-CT slices · {moment(time.time())}"
    return sheet(
        f"{len(found)} searches side by side", eyebrow, _lead(places[0], compared), sections, _warnings(found, compared)
    )


def _lead(first: str, compared: SideBySide) -> list[str]:
    outcomes = Counter(pair.outcome for pair in compared.pairs)
    said = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in get_args(Outcome) if outcomes[outcome])
    return [
        f"By their best trials, against search 1 ({first}): {said}.",
        "A best value is the luckiest of many trials and optimistic, and that of more trials more so: confirm before "
        "one search is called better. No model of these searches is a medical device.",
    ]


def _warnings(found: Sequence[SearchResult], compared: SideBySide) -> list[str]:
    """What a reader must know before comparing anything."""
    first = found[0]
    told = [f"Search {at}: {one.record.leak}" for at, one in enumerate(found, 1) if one.record.leak]
    for at, (pair, one) in enumerate(zip(compared.pairs, found[1:], strict=True), 2):
        if not pair.same_dataset:
            told.append(f"Search {at} is of another dataset than search 1: their figures are not comparable.")
        elif one.objective != first.objective:
            told.append(f"Search {at} judged its trials otherwise than search 1: {_judged(one)}, not {_judged(first)}.")
    return told + [
        f"Search {at} has not ended, {count(len(one.trials))} of {count(one.record.wanted)} trials have begun: its "
        "figures will change."
        for at, (one, reached) in enumerate(zip(found, compared.searches, strict=True), 1)
        if not reached.ended
    ]


def _judged(found: SearchResult) -> str:
    return f"by {metric_name(found.objective.metric)} {found.objective.judged}"


def _reached(names: Sequence[str], compared: SideBySide) -> Section:
    metrics = {one.metric for one in compared.searches}
    rows = [
        [
            name, f"{count(one.completed)} of {count(one.trials)}", _best(one, len(metrics) > 1),
            _confirmed(one), _tested(one), count(one.images), number(one.gpu_hours, 2),
        ]
        for name, one in zip(names, compared.searches, strict=True)
    ]  # fmt: skip
    head = ["Search", "Completed", "Best", "Confirmed ± SD", "Test [95 %]", "Images", "GPU hours"]
    shared = f"All by {metric_name(compared.searches[0].metric)}. " if len(metrics) == 1 else ""
    caption = (
        f"{shared}Best is the selection score of the best completed trial. Confirmed is the mean of the chosen trial, "
        "trained again n times. Test is of the bundle, on patients whom no earlier step had seen. – was not done."
    )
    return Section("reached", "What each reached", tables=[Table("Figures", head, rows, caption, numbers=range(1, 7))])


def _best(search: ComparedSearch, named: bool) -> str:
    metric = f" {metric_name(search.metric)}" if named else ""
    return "–" if search.best is None else f"{number(search.best, 4)}{metric} (trial {search.trial})"


def _told_apart(places: Sequence[str]) -> list[str]:
    """As much of the end of each path as tells it from the others: a page is passed on, and names no more.

    A search is called by its folder: those of one space have one name.
    """
    parts = [place.replace("\\", "/").rstrip("/").split("/") for place in places]
    for kept in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(part[-kept:]) for part in parts]
        if len({*ends}) == len(places):
            break
    return [end if len(end) <= _LONGEST_NAME else f"…{end[1 - _LONGEST_NAME :]}" for end in ends]


def _confirmed(search: ComparedSearch) -> str:
    if search.confirmed is None:
        return "–"
    spread = "" if search.spread is None else f" ± {number(search.spread, 4)}"
    return f"{number(search.confirmed, 4)}{spread} (n = {search.trainings})"


def _tested(search: ComparedSearch) -> str:
    if search.test is None:
        return "–"
    known = search.test_low is not None and search.test_high is not None
    interval = f"[{number(search.test_low)}, {number(search.test_high)}]" if known else "[no interval]"
    return f"{number(search.test)} {interval}"


def _course(names: Sequence[str], found: Sequence[SearchResult]) -> Section:
    plots = best_curves(names, found)
    return Section("course", "The best so far", [] if plots else ["No trial has reported a value."], plots=plots)


def _noise(pairs: Sequence[ComparedPair]) -> Section:
    rows = [
        [
            f"Search {at}",
            "the same" if pair.same_dataset else "another",
            _without_paths(pair.verdict, pair, at),
            _without_paths(pair.test.verdict, pair, at) if pair.test else "not tested in both",
        ]
        for at, pair in enumerate(pairs, 2)
    ]
    caption = (
        "Best trials: patients who judged both are drawn again, and so are, for the test figures of the bundles, the "
        "test patients; beyond noise is what 97.5 % of draws agree on. What another seed would have given is not in it."
    )
    head = ["", "Dataset", "Best trial", "Test figure"]
    table = Table("Against search 1", head, rows, caption)
    return Section("noise", "Which differences are beyond noise", tables=[table])


def _without_paths(text: str, pair: ComparedPair, at: int) -> str:
    """A verdict that names searches as the page does, which is passed on."""
    names = {pair.search: f"search {at}", pair.other: "search 1"}
    for place in sorted(names, key=len, reverse=True):  # one may begin as the other does
        text = text.replace(place, names[place])
    return _cut(text, _LONGEST_TEXT)


def _asked(names: Sequence[str], found: Sequence[SearchResult], pairs: Sequence[ComparedPair]) -> Section:
    """The keys in which spaces, seeds and budgets differ, and each space as it was written."""
    first: dict[str, str] = {}
    for pair in pairs:
        first |= {key: one for key, (one, _) in pair.asked.items()}
    rows = [
        [_cut(key), *(_cut(text) for text in (one, *(pair.asked.get(key, ("", one))[1] for pair in pairs)))]
        for key, one in [*first.items()][:_MOST_KEYS]
    ]
    left = len(first) - len(rows)
    paragraphs = [] if first else ["They were asked the same: space, seed and budget."]
    caption = f"{count(left)} more keys differ; `ich-ray results --json` has all." if left else ""
    sources = [
        SourceText(f"Space of search {name}", _cut(_yaml(one.record.space), _LONGEST_SPACE))
        for name, one in zip(names, found, strict=True)
    ]
    tables = [Table("What differs", ["Key", *names], rows, caption)] if rows else []
    return Section("asked", "How they were asked", paragraphs, tables, sources=sources)


def _yaml(space: dict[str, Any]) -> str:
    return yaml.safe_dump(space, sort_keys=False, default_flow_style=None, width=100)


def _best_trials(names: Sequence[str], found: Sequence[SearchResult], compared: Sequence[ComparedSearch]) -> Section:
    best = [
        next((trial.parameters for trial in one.trials if trial.number == reached.trial), {})
        for one, reached in zip(found, compared, strict=True)
    ]
    facts = [[(name, setting(value)) for name, value in parameters.items()] for parameters in best]
    tables = [_rows_of("Parameters", names, facts)] if any(facts) else []
    return Section("best", "The best trial of each", [] if tables else ["No trial has completed."], tables)


def _rows_of(title: str, names: Sequence[str], facts: Sequence[Iterable[tuple[str, str]]]) -> Table:
    """Facts of each search as a column; – where one has no such fact."""
    known = [dict(one) for one in facts]
    rows = dict.fromkeys(name for one in known for name in one)
    cells = [[_cut(name), *(_cut(one.get(name, "–")) for one in known)] for name in [*rows][:_MOST_KEYS]]
    return Table(title, ["", *names], cells)


def _cut(text: str, most: int = _WIDEST) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
