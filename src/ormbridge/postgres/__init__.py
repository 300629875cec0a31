"""What PostgreSQL can do and others cannot: stop a statement, and say when it has."""
