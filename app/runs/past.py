"""A run of which only the row is left: its log has been let go, or the server that ran it is gone."""

from typing import Any, NoReturn

from app.errors import RunExpired
from app.runs.ledger import Row


class PastRun:
    """Answers where a ``Run`` would, as far as a row can."""

    finished = True

    def __init__(self, row: Row) -> None:
        self._row = row
        self.run_id: str = row["run_id"]
        self.user: str = row["user"]
        self.status: str = row["status"]
        self.last_event_id: int | None = row["last_event_id"]

    def row(self) -> Row:
        """One row of ``GET /runs``."""
        return self._row

    def subscribe(self, after: int) -> NoReturn:
        """Raises ``RunExpired``."""
        raise RunExpired(f"the run is over and its events are no longer kept; its row is at /runs/{self.run_id}")

    def result(self) -> dict[str, Any]:
        """Raises ``RunExpired``."""
        raise RunExpired("the run is over and its result is no longer kept")
