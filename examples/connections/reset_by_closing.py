def reset_session(connection):
    connection.close()
