"""The page on the admin address: what the process hosts, for people; read-only, live, without outside requests."""
