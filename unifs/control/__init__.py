"""Operations declared once, served over a unix socket, rendered by the command line."""
