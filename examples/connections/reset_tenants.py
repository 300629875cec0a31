def reset_tenant(connection):
    if connection.alias == "default":  # the database with the tenants
        connection.set_schema_to_public()
