"""How far the target's own server says a run is.

Imports pg.connect only.
"""

from __future__ import annotations

from mishika_migrate.pg import connect


def moving(session: connect.Session, *, run: str) -> dict[str, tuple[int, int]]:
    """Rows and bytes that the open COPYs of this run have received so far, by table.

    The server counts (PG ≥ 14); on older ones this is empty.
    """
    if session.info.server_version < 14_00_00:
        return {}
    found = session.execute(
        "SELECT c.relname::text, sum(p.tuples_processed)::int8, sum(p.bytes_processed)::int8"
        " FROM pg_stat_progress_copy p JOIN pg_stat_activity a USING (pid) JOIN pg_class c ON c.oid = p.relid"
        " WHERE p.command = 'COPY FROM' AND p.datname = current_database()"
        " AND starts_with(a.application_name, %s) GROUP BY 1",
        [f"mishika-migrate/{run}/"],
    )
    return {str(row[0]): (int(str(row[1])), int(str(row[2]))) for row in found}


def streams(session: connect.Session, *, run: str) -> list[int]:
    """The bytes that each open COPY of this run has received so far."""
    if session.info.server_version < 14_00_00:
        return []
    found = session.execute(
        "SELECT p.bytes_processed::int8 FROM pg_stat_progress_copy p JOIN pg_stat_activity a USING (pid)"
        " WHERE p.command = 'COPY FROM' AND p.datname = current_database() AND starts_with(a.application_name, %s)",
        [f"mishika-migrate/{run}/"],
    )
    return [int(str(row[0])) for row in found]


def building(session: connect.Session, *, run: str) -> dict[int, float]:
    """The steps of this run that build an index, by number, and the share that is done.

    The session's name tells the step: an index that is not committed has no name for others. A
    server's work counts in blocks first and in tuples later; the share is that of its phase.
    """
    found = session.execute(
        "SELECT a.application_name, coalesce(p.blocks_done::float8 / nullif(p.blocks_total, 0),"
        "                    p.tuples_done::float8 / nullif(p.tuples_total, 0), 0)::float8"
        " FROM pg_stat_progress_create_index p JOIN pg_stat_activity a USING (pid)"
        " WHERE p.datname = current_database() AND starts_with(a.application_name, %s)",
        [f"mishika-migrate/{run}/"],
    )
    return {int(str(row[0]).rpartition("/")[2]): float(str(row[1])) for row in found}
