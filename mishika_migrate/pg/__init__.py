"""All that talks to Postgres: the only home of psycopg and of SQL. Imports the words only."""
