from psycopg import sql

CLEAR = sql.SQL("""
    RESET SESSION AUTHORIZATION;
    RESET ALL;
    CLOSE ALL;
    UNLISTEN *;
    SELECT pg_advisory_unlock_all();
    DISCARD TEMP;
    DISCARD SEQUENCES;
    -- What Django itself sets when it connects:
    SET TIME ZONE {time_zone};
    SET ROLE {role};
""")


def reset_session(connection):
    if connection.connection is None:  # it is not open, so there is no session
        return
    statements = CLEAR.format(
        time_zone=sql.Literal(connection.timezone_name),
        role=sql.Literal(connection.settings_dict["OPTIONS"].get("assume_role") or "none"),
    )
    # One round trip to the server. It is never prepared: that takes one statement at a time.
    connection.connection.execute(statements, prepare=False)
