"""Who may do what at a station: users, sessions, tokens, roles, and the one table of permissions."""
