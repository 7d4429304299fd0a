"""Writes the table of a campaign: per part, how many trials there were, how they ended, and how many were survived."""

import collections
from collections.abc import Iterable

from trials import Outcome


def markdown(outcomes: Iterable[Outcome]) -> str:
    """Returns the table in Markdown."""
    by_part = collections.defaultdict(list)
    for outcome in outcomes:
        by_part[outcome.part].append(outcome)
    lines = ["| part | trials | survived | exit codes (trials) | longest |", "| --- | ---: | ---: | --- | ---: |"]
    for part, found in by_part.items():
        codes = collections.Counter(outcome.code for outcome in found)
        endings = ", ".join(f"{code} ({count:,})" for code, count in sorted(codes.items()))
        survived = sum(not outcome.faults for outcome in found)
        longest = max(outcome.seconds for outcome in found)
        lines.append(f"| {part} | {len(found):,} | {survived:,} | {endings} | {longest:.1f} s |")
    return "\n".join(lines)
