"""How far the standbys of a server are behind.

Imports pg.connect only.
"""

from __future__ import annotations

from dataclasses import dataclass

from mishika_migrate.pg import connect


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """Of the standby that is furthest behind: its name and seconds.

    `count` is that of all standbys; `hidden` says that `role` may not see how far they are (it is
    no member of pg_monitor).
    """

    count: int
    hidden: bool
    role: str = ""
    name: str = ""
    seconds: float = 0.0


def lag(session: connect.Session) -> Lag:
    """As the server measured it last: of a standby that has caught up and of one that is gone it knows no lag."""
    row = session.execute(
        "WITH s AS (SELECT coalesce(nullif(application_name, ''), client_addr::text, pid::text) AS name,"
        "                  state IS NULL AS hidden,"
        "                  coalesce(extract(epoch FROM greatest(write_lag, flush_lag, replay_lag)), 0) AS seconds"
        "           FROM pg_stat_replication WHERE application_name NOT LIKE 'mishika-migrate%'"
        "           AND (state IS NULL OR state IN ('streaming', 'catchup')))"
        " SELECT count(*), coalesce(bool_or(hidden), false),"
        "   coalesce((array_agg(name ORDER BY seconds DESC))[1], ''), coalesce(max(seconds), 0)::float8,"
        "   current_user::text FROM s"
    ).fetchone()
    assert row is not None
    return Lag(
        count=int(str(row[0])), hidden=bool(row[1]), name=str(row[2]), seconds=float(str(row[3])), role=str(row[4])
    )
