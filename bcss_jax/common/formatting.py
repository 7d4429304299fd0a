"""Writes scores as text for terminals, tables and reports."""


def format_score(value: float | None, digits: int = 4, missing: str = "n/a") -> str:
    """Returns a score with a fixed number of decimals, or `missing` for None."""
    return missing if value is None else f"{value:.{digits}f}"


def format_table_score(value: float | None, digits: int = 3) -> str:
    """Returns a score for a table that people read: a dash stands for None."""
    return format_score(value, digits, missing="–")


def format_interval(low: float | None, high: float | None) -> str:
    """Returns the two ends of a confidence interval, or a dash if it is unknown."""
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
