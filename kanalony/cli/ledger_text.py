"""The ledger as a table, and as JSON."""

import json
from dataclasses import asdict

from tabulate import tabulate

from kanalony.aggregate.ledger import Ledger

_COLUMNS = (
    ("segment", "segment"),
    ("accepted", "accepted"),
    ("framed", "framed"),
    ("read", "read"),
    ("repeated", "repeated"),
    ("quarantined", "quarantined"),
    ("events", "events"),
    ("rows", "rows"),
    ("duplicates", "duplicates"),
    ("stored", "in the lake"),
)


def as_table(ledger: Ledger) -> str:
    """Formats the ledger as a table, with lines for requests that are pending or missing."""
    rows = [[getattr(account, name) for name, _ in _COLUMNS] for account in [*ledger.accounts, ledger.total]]
    texts = [[value if isinstance(value, str) else f"{value:,}" for value in row] for row in rows]
    titles = [title for _, title in _COLUMNS]
    table = tabulate(texts, titles, "plain", colalign=["left", *["right"] * (len(titles) - 1)], disable_numparse=True)
    lines = [table, "", f"{ledger.pending:,} requests wait to be compacted"]
    lines += [
        f"{account.segment} ends too early: the number of lost requests is unknown"
        for account in ledger.accounts
        if account.torn
    ]
    if ledger.missing:
        lines.append(f"{ledger.missing:,} accepted requests are missing")
    if ledger.lake_rows != ledger.total.stored:
        lines.append(f"{ledger.lake_rows - ledger.total.stored:,} rows in the lake belong to no segment")
    lines += [f"not balanced: {account.segment}" for account in ledger.accounts if not account.balanced]
    lines.append("balanced" if ledger.balanced else "NOT BALANCED")
    return "\n".join(lines)


def as_json(ledger: Ledger) -> str:
    """Formats the ledger as one JSON object."""
    content = {
        "balanced": ledger.balanced,
        "pending": ledger.pending,
        "missing": ledger.missing,
        "lake_rows": ledger.lake_rows,
        "sum": {name: getattr(ledger.total, name) for name, _ in _COLUMNS[1:]},
        "segments": [{**asdict(account), "balanced": account.balanced} for account in ledger.accounts],
    }
    return json.dumps(content, indent=1)
