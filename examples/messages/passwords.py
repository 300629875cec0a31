import psycopg


def connect(**options):
    return psycopg.connect(dbname="postgres", autocommit=True, **options)


MISTAKES = {
    "wrong_password": {"user": "ormbridge_app", "password": "guess"},
    "role_that_does_not_exist": {"user": "ormbridge_nobody", "password": "secret"},
    "no_password": {"user": "ormbridge_app", "password": ""},
}

if __name__ == "__main__":
    with connect() as server:
        server.execute("CREATE ROLE ormbridge_app LOGIN PASSWORD 'secret'")
        try:
            for name, options in MISTAKES.items():
                try:
                    connect(**options).close()
                    print(f"{name}: the pg_hba.conf of this server asks for no password")
                except psycopg.OperationalError as error:
                    first, *_ = str(error).splitlines()
                    print(f"{name}: {type(error).__name__}: {first}")
        finally:
            server.execute("DROP ROLE ormbridge_app")
