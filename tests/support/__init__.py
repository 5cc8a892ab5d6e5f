"""What the tests share: the Postgres of a test run, and the rule about skipped tests."""
