-- A schedule for which the statement that fires it fails as a whole, though it is alone there. passes: the error may, so it waits a minute.
UPDATE cluster.schedules AS s SET
    last_error = %(error)s,
    state = CASE WHEN %(passes)s THEN s.state ELSE 'deactivated' END,
    not_before = CASE WHEN %(passes)s THEN now() + interval '1 minute' END
WHERE s.name = %(schedule)s AND s.revision = %(revision)s
RETURNING s.name
