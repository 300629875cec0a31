"""A small project, as it would be deployed: views, a consumer, PostgreSQL and Redis."""
