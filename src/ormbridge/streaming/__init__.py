"""Large results in bounded memory."""
