-- Seconds since the oldest transaction of this database began that has written or holds a snapshot: what it can see, vacuum must keep.
-- NULL: there is none. And whether this role may see those of other roles; prepared ones everybody sees.
SELECT extract(epoch FROM clock_timestamp() - least(
           (SELECT min(xact_start) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
              AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)),
           (SELECT min(prepared) FROM pg_prepared_xacts WHERE database = current_database())))::float8,
       pg_has_role('pg_read_all_stats', 'USAGE')
