"""Lines that a person can follow on a terminal and in a job's log: what, how far, how fast, how long left."""

from __future__ import annotations

import logging
import time
from collections import defaultdict

log = logging.getLogger(__name__)

INTERVAL_S = 5.0  # between two lines of one step


class Progress:
    """Counts units of one step and logs at most one line every INTERVAL_S seconds, and one at the end."""

    def __init__(self, step: str, total: int, unit: str) -> None:
        self.step, self.total, self.unit = step, total, unit
        self.done = 0
        self._start = self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # when work arrived first: start-up is no part of the speed
        log.info("%-12s %d %s to do", step, total, unit)

    def advance(self, units: int) -> None:
        """Add finished units."""
        self.done += units
        now = time.monotonic()
        self._first = self._first or (now, self.done)
        if self.done < self.total and now - self._last >= INTERVAL_S:
            self._last = now
            log.info("%-12s %d/%d %s%s", self.step, self.done, self.total, self.unit, self._outlook(now))

    def finish(self) -> None:
        """Log the closing line."""
        seconds = time.monotonic() - self._start
        log.info("%-12s %d/%d %s in %s", self.step, self.done, self.total, self.unit, duration(seconds))

    def _outlook(self, now: float) -> str:
        assert self._first is not None
        since, already = self._first
        if self.done <= already or now <= since:
            return ""
        rate = (self.done - already) / (now - since)
        return f", {rate:.1f} {self.unit}/s, {duration((self.total - self.done) / rate)} left"


class Laps:
    """Seconds from the start of a step to the start of the next."""

    def __init__(self) -> None:
        self._starts: list[tuple[str, float]] = []

    def start(self, step: str) -> None:
        """A step begins, and with it the one before it ends."""
        self._starts.append((step, time.monotonic()))

    def seconds(self) -> dict[str, float]:
        """Seconds of each step until now, of all its laps together."""
        ends = [t for _, t in self._starts[1:]] + [time.monotonic()]
        found: dict[str, float] = defaultdict(float)
        for (step, start), end in zip(self._starts, ends, strict=True):
            found[step] += end - start
        return {step: round(seconds, 1) for step, seconds in found.items()}


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `3.2 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
