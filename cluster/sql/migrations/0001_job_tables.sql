-- expand: job types, queues, nodes, schedules, and the functions that make a table a job table.
--
-- Advisory locks use the two-integer form (class, table oid). Classes, shared with cluster/locks.py:
--   1751 doorbell: held exclusively by the coordinator on watch, shared by producers until they commit
--   1753 node: held by a living coordinator for its whole session (second key: hash of the node id)
--   1755 migration: one at a time (second key: 0)

-- Functions that run as whoever inserts, cancels or claims compare a job_status as text: for text Postgres has exact operators, so
-- none that somebody makes in a schema of the caller's search_path is taken in their place. See cluster/neighbours.py.

CREATE TYPE cluster.job_status AS ENUM (
    'scheduled', 'not_started', 'running', 'retry', 'succeeded', 'failed', 'timed_out', 'cancelled'
);

CREATE TABLE cluster.job_types (
    name                     text PRIMARY KEY,
    job_table                regclass NOT NULL UNIQUE,
    max_concurrency          integer DEFAULT 16 CHECK (max_concurrency >= 0),
    max_concurrency_override integer CHECK (max_concurrency_override >= 0),
    concurrency_key          text,
    max_attempts             integer NOT NULL DEFAULT 10 CHECK (max_attempts >= 0),
    max_crashes              integer NOT NULL DEFAULT 3 CHECK (max_crashes >= 1),
    retry_delay              interval NOT NULL DEFAULT '30 seconds',
    retention                interval CHECK (retention >= interval '0'),
    retention_failed         interval CHECK (retention_failed >= interval '0'),
    paused_at                timestamptz,
    paused_reason            text
);
COMMENT ON TABLE cluster.job_types IS 'One row per job table. Deploys write it through migrate; max_concurrency_override, paused_at and paused_reason belong to operators.';

CREATE TABLE cluster.turns (
    job_table regclass PRIMARY KEY REFERENCES cluster.job_types (job_table) ON UPDATE CASCADE ON DELETE CASCADE
);
COMMENT ON TABLE cluster.turns IS 'One row per job table. Whoever has locked it claims, where a limit is to be kept.';

CREATE FUNCTION cluster.add_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO cluster.turns (job_table) VALUES (NEW.job_table);
    RETURN NULL;
END $$;

CREATE TRIGGER add_turn AFTER INSERT ON cluster.job_types FOR EACH ROW EXECUTE FUNCTION cluster.add_turn();

CREATE TABLE cluster.queues (
    name          text PRIMARY KEY CHECK (name <> ''),
    paused_at     timestamptz,
    paused_reason text
);
COMMENT ON TABLE cluster.queues IS 'Queues that operators have paused; a queue needs no row to be used. The queue * stands for everything.';

-- While everything is paused, a job type that comes is paused with it.
CREATE FUNCTION cluster.pause_new_type() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT q.paused_at, q.paused_reason INTO NEW.paused_at, NEW.paused_reason
    FROM cluster.queues q WHERE q.name = '*' AND q.paused_at IS NOT NULL;
    RETURN NEW;
END $$;

CREATE TRIGGER pause_new_type BEFORE INSERT ON cluster.job_types FOR EACH ROW
    WHEN (NEW.paused_at IS NULL) EXECUTE FUNCTION cluster.pause_new_type();

CREATE TABLE cluster.nodes (
    id           uuid PRIMARY KEY,
    hostname     text NOT NULL,
    pid          integer NOT NULL,
    version      text NOT NULL,
    queues       text[] NOT NULL,
    jobs         text[] NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    lease_until  timestamptz NOT NULL,
    state        text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'draining', 'stopped', 'lost')),
    slots        integer NOT NULL,
    running      integer NOT NULL DEFAULT 0,
    session_pid  integer,
    listen_pid   integer,
    lost_with    integer,
    trouble      jsonb NOT NULL DEFAULT '[]',
    work         jsonb NOT NULL DEFAULT '[]',
    code         text NOT NULL DEFAULT ''
) WITH (fillfactor = 50);
COMMENT ON TABLE cluster.nodes IS 'One row per start of a node; a claim holds its node''s row FOR KEY SHARE.';
COMMENT ON COLUMN cluster.nodes.lost_with IS 'How many jobs a lost node had; NULL: nobody has counted.';
COMMENT ON COLUMN cluster.nodes.trouble IS 'What the node has set aside, with the last heartbeat: job_type, reason, detail, rows, since.';
COMMENT ON COLUMN cluster.nodes.code IS 'A hash of the files of its job code, as it was at its start.';
COMMENT ON COLUMN cluster.nodes.work IS 'Of each job type, with the last heartbeat: the slots that one job takes, the mean seconds of the last attempts, and how many those were, 100 at most.';

CREATE TABLE cluster.audit (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT now(),
    who    text NOT NULL,
    via    text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    filter jsonb,
    count  bigint
);
COMMENT ON TABLE cluster.audit IS 'What people did with the dashboard and the command line, a row each. count: jobs that were changed; NULL: none were meant, or it is not over.';
CREATE INDEX audit_at ON cluster.audit (at);

-- Nodes forget what was done more than 400 days ago, a part of it at a time. Runs as its owner: nobody else need be allowed to delete.
CREATE FUNCTION cluster.prune_audit() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH gone AS (
        DELETE FROM cluster.audit WHERE id IN (
            SELECT id FROM cluster.audit WHERE at < now() - interval '400 days' ORDER BY at LIMIT 5000
        ) RETURNING id
    )
    SELECT count(*) FROM gone
$$;

CREATE TABLE cluster.views (
    job_table regclass NOT NULL,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 60),
    query text NOT NULL,
    who text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_table, name)
);
COMMENT ON TABLE cluster.views IS 'Filters of the dashboard that a team has saved. query: as in an address.';

CREATE TABLE cluster.identity (
    is_only_row       boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    system_identifier bigint,
    database          oid NOT NULL,
    recorded_at       timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE cluster.identity IS 'The database whose jobs these are, recorded by migrate: in a copy it is another one, and nodes refuse to start.';

-- Walks of the pruning nodes, one for each table that keeps finished rows for a time. Whoever takes a step moves due_at on first, so
-- no two nodes take the same one, and another goes on when that node dies.
CREATE TABLE cluster.prune_walks (
    job_table        regclass PRIMARY KEY,
    retention        interval,
    retention_failed interval,
    reached          bigint,
    expires_at       timestamptz,
    due_at           timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE cluster.prune_walks IS 'Per job table: how far pruning got (NULL: between two walks), when the first of the rows that it left expires, and when its next step is due.';

-- Fires only for rows that its WHEN clause singles out, so ordinary inserts pay nothing. It names no object of schema
-- cluster: a role that may do no more than INSERT into the job table can fire it.
CREATE FUNCTION cluster.check_new_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status::text <> 'not_started' OR NEW.attempts_count <> 0 OR NEW.crashes_count <> 0
        OR num_nonnulls(NEW.locked_at, NEW.locked_by, NEW.started_at, NEW.finished_at, NEW.cancel_requested_at) > 0
    THEN
        RAISE EXCEPTION 'a new job may not set status, locked_at, locked_by, attempts_count, crashes_count, started_at, finished_at or cancel_requested_at'
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA,
                  HINT = 'Leave these columns out: they belong to the cluster. To run the job later, set run_at.';
    END IF;
    IF NEW.run_at > now() THEN
        NEW.status := 'scheduled';
    END IF;
    RETURN NEW;
END $$;

-- The doorbell. Getting the shared lock means that no coordinator is on watch for this table, so one is awake and looking
-- (or none is up). The lock lasts until the transaction ends: no coordinator can go on watch past a row it cannot see yet.
CREATE FUNCTION cluster.ring_doorbell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(1751, TG_RELID::integer) THEN
        PERFORM pg_notify('cluster_doorbell', TG_RELID::text);
    END IF;
    RETURN NULL;
END $$;

-- A waiting row whose time, queue or priority changes is like a new one: its status follows run_at, and it rings.
CREATE FUNCTION cluster.reschedule_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.run_at <= now() THEN
        NEW.status := 'not_started';
    ELSIF NEW.status::text = 'not_started' THEN
        NEW.status := 'scheduled';
    END IF;
    IF NOT pg_try_advisory_xact_lock_shared(1751, TG_RELID::integer) THEN
        PERFORM pg_notify('cluster_doorbell', TG_RELID::text);
    END IF;
    RETURN NEW;
END $$;

-- A parked row waits for room under the limit of its key. Only a claim parks rows; whatever else is done to one opens it again.
CREATE FUNCTION cluster.unpark_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.parked := false;
    IF NEW.status::text = 'not_started' AND NOT pg_try_advisory_xact_lock_shared(1751, TG_RELID::integer) THEN
        PERFORM pg_notify('cluster_doorbell', TG_RELID::text);
    END IF;
    RETURN NEW;
END $$;

-- Operators' changes reach every node at once; they are rare, so they may notify without the doorbell.
CREATE FUNCTION cluster.announce_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('cluster_doorbell', '');
    RETURN NULL;
END $$;

CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE ON cluster.job_types
    FOR EACH STATEMENT EXECUTE FUNCTION cluster.announce_change();
CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE ON cluster.queues
    FOR EACH STATEMENT EXECUTE FUNCTION cluster.announce_change();

-- The standard columns: name, type as format_type() prints it, and what follows the type in the DDL.
CREATE FUNCTION cluster.standard_columns()
RETURNS TABLE (name text, type text, definition text) LANGUAGE sql IMMUTABLE AS $$
    VALUES ('id', 'bigint', 'GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY'),
           ('queue', 'text', 'NOT NULL DEFAULT ''default'''),
           ('priority', 'smallint', 'NOT NULL DEFAULT 50'),
           ('run_at', 'timestamp with time zone', 'NOT NULL DEFAULT now()'),
           ('status', 'cluster.job_status', 'NOT NULL DEFAULT ''not_started'''),
           ('attempts_count', 'integer', 'NOT NULL DEFAULT 0'),
           ('crashes_count', 'integer', 'NOT NULL DEFAULT 0'),
           ('last_error', 'text', ''),
           ('locked_at', 'timestamp with time zone', ''),
           ('locked_by', 'uuid', ''),
           ('started_at', 'timestamp with time zone', ''),
           ('finished_at', 'timestamp with time zone', ''),
           ('cancel_requested_at', 'timestamp with time zone', ''),
           ('created_at', 'timestamp with time zone', 'NOT NULL DEFAULT now()'),
           ('updated_at', 'timestamp with time zone', 'NOT NULL DEFAULT now()'),
           ('schedule', 'text', ''),
           ('scheduled_for', 'timestamp with time zone', '')
$$;

CREATE FUNCTION cluster.standard_checks(concurrency_key text)
RETURNS TABLE (name text, condition text) LANGUAGE sql IMMUTABLE AS $$
    VALUES ('cluster_queue_named', 'queue <> '''' AND length(queue) <= 128'),
           ('cluster_priority_range', 'priority BETWEEN 1 AND 100'),
           -- What Python can hold in every time zone; neither infinity nor years that only Postgres knows.
           ('cluster_run_at_range', 'run_at >= ''0001-01-02 00:00:00+00'' AND run_at < ''9999-12-31 00:00:00+00'''),
           ('cluster_running_is_locked', '(status = ''running'') = (locked_at IS NOT NULL)')
    UNION ALL
    SELECT 'cluster_parked_waits', 'NOT parked OR status = ''not_started''' WHERE concurrency_key <> ''
$$;

-- concurrency_key: the column whose values have a limit each; '': the limit is the table's. A table with a key has no index over
-- all waiting rows: the planner would take it, and crawl over those that are parked.
-- Nodes that serve all queues go through the queue "default" and through the rest of the queues in claim order, whatever their
-- number; nodes that serve some queues go through each of those. Most rows are in "default", and then in one index only.
-- _others says in other words than _queue which rows it has: the planner takes it only for statements that use its words.
CREATE FUNCTION cluster.standard_indexes(concurrency_key text)
RETURNS TABLE (suffix text, definition text) LANGUAGE sql IMMUTABLE AS $$
    VALUES ('due', '(run_at) WHERE status IN (''scheduled'', ''retry'')'),
           ('running', '(locked_by) WHERE status = ''running''')
    UNION ALL
    SELECT CASE WHEN concurrency_key = '' THEN claim.suffix ELSE claim.suffix_open END,
           claim.definition || CASE WHEN concurrency_key = '' THEN '' ELSE ' AND NOT parked' END
    FROM (VALUES
        ('claim', 'open', '(priority, run_at, id) WHERE status = ''not_started'' AND queue = ''default'''),
        ('others', 'open_others',
         '(priority, run_at, id) WHERE status = ''not_started'' AND (queue < ''default'' OR queue > ''default'')'),
        ('queue', 'open_queue', '(queue, priority, run_at, id) WHERE status = ''not_started'' AND queue <> ''default''')
    ) AS claim (suffix, suffix_open, definition)
    UNION ALL
    SELECT suffix, definition FROM (VALUES
        ('parked', format('(%I, priority, run_at, id) WHERE parked', concurrency_key)),
        ('running_key', format('(%I) WHERE status = ''running''', concurrency_key))
    ) AS keyed (suffix, definition) WHERE concurrency_key <> ''
$$;

CREATE FUNCTION cluster.standard_triggers(concurrency_key text)
RETURNS TABLE (name text, timing text, action text) LANGUAGE sql IMMUTABLE AS $$
    VALUES ('cluster_check_new_job', 'BEFORE INSERT',
            'FOR EACH ROW WHEN (NEW.status <> ''not_started'' OR NEW.run_at > now()'
            ' OR NEW.attempts_count <> 0 OR NEW.crashes_count <> 0 OR NEW.locked_at IS NOT NULL OR NEW.locked_by IS NOT NULL'
            ' OR NEW.started_at IS NOT NULL OR NEW.finished_at IS NOT NULL OR NEW.cancel_requested_at IS NOT NULL)'
            ' EXECUTE FUNCTION cluster.check_new_job()'),
           ('cluster_ring_doorbell', 'AFTER INSERT',
            'FOR EACH STATEMENT EXECUTE FUNCTION cluster.ring_doorbell()'),
           ('cluster_reschedule_job', 'BEFORE UPDATE',
            'FOR EACH ROW WHEN (NEW.status IN (''not_started'', ''scheduled'', ''retry'')'
            ' AND (NEW.status, NEW.run_at, NEW.queue, NEW.priority)'
            ' IS DISTINCT FROM (OLD.status, OLD.run_at, OLD.queue, OLD.priority))'
            ' EXECUTE FUNCTION cluster.reschedule_job()'),
           ('cluster_tell_schedule', 'AFTER UPDATE',
            'FOR EACH ROW WHEN (NEW.schedule IS NOT NULL AND (NEW.finished_at IS NULL) <> (OLD.finished_at IS NULL))'
            ' EXECUTE FUNCTION cluster.tell_schedule()'),
           ('cluster_tell_of_deleted', 'AFTER DELETE',
            'FOR EACH ROW WHEN (OLD.schedule IS NOT NULL AND OLD.finished_at IS NULL) EXECUTE FUNCTION cluster.tell_schedule()')
    UNION ALL
    SELECT name, timing, action FROM (VALUES
        ('cluster_unpark_new_job', 'BEFORE INSERT',
         'FOR EACH ROW WHEN (NEW.parked) EXECUTE FUNCTION cluster.unpark_job()'),
        ('cluster_unpark_job', 'BEFORE UPDATE',
         'FOR EACH ROW WHEN (OLD.parked AND NEW.status <> ''running'') EXECUTE FUNCTION cluster.unpark_job()')
    ) AS keyed (name, timing, action) WHERE concurrency_key <> ''
$$;

-- Index names must differ within a schema, and Postgres would cut long ones silently.
CREATE FUNCTION cluster.index_name(table_name text, suffix text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN octet_length(table_name) <= 54 THEN table_name ELSE left(table_name, 24) || '_' || left(md5(table_name), 8) END
           || '_' || suffix
$$;

-- Refuses what a job table cannot be; returns the table that a possibly qualified name stands for, or NULL.
CREATE FUNCTION cluster.find_job_table(job_table text) RETURNS regclass LANGUAGE plpgsql STABLE AS $$
DECLARE
    target regclass := to_regclass(job_table);
    kind "char" := (SELECT relkind FROM pg_class WHERE oid = target);
BEGIN
    IF target IS NULL THEN
        RETURN NULL;
    ELSIF kind = 'p' OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = target OR inhparent = target) THEN
        RAISE EXCEPTION 'job table % may not be partitioned or inherited', target
            USING ERRCODE = 'feature_not_supported', HINT = 'Use a plain table.';
    ELSIF kind <> 'r' OR (SELECT relpersistence FROM pg_class WHERE oid = target) = 't' THEN
        RAISE EXCEPTION '% is not an ordinary table', target USING ERRCODE = 'wrong_object_type';
    END IF;
    RETURN target;
END $$;

-- valid: false, one whose CREATE INDEX CONCURRENTLY did not end.
CREATE FUNCTION cluster.partial_indexes(job_table regclass)
RETURNS TABLE (name text, definition text, valid boolean) LANGUAGE sql STABLE AS $$
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid
    FROM pg_index WHERE indrelid = job_table AND indpred IS NOT NULL
$$;

-- Whether an index as pg_get_indexdef() prints it is the one that standard_indexes() wants: the same columns, and the same rows as
-- far as standard indexes differ in them: parked or open, of the queue "default" or of the others.
CREATE FUNCTION cluster.is_index(printed text, wanted text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT strpos(printed, ' USING btree ' || split_part(wanted, ' WHERE ', 1) || ' WHERE ') > 0
       AND (split_part(printed, ' WHERE ', 2) LIKE '%parked%') = (split_part(wanted, ' WHERE ', 2) LIKE '%parked%')
       AND (split_part(printed, ' WHERE ', 2) ~ 'queue = ') = (split_part(wanted, ' WHERE ', 2) ~ 'queue = ')
       AND (split_part(printed, ' WHERE ', 2) ~ 'queue <> ') = (split_part(wanted, ' WHERE ', 2) ~ 'queue <> ')
       AND (split_part(printed, ' WHERE ', 2) ~ 'queue < ') = (split_part(wanted, ' WHERE ', 2) ~ 'queue < ')
$$;

-- What is missing from a table for it to be a job table, as SQL: one statement a row, in order. job_table may not exist yet.
-- Nothing is missing: no rows, and no lock was taken. A column of another type is an error that names it.
-- concurrency_key: see create_job_table; its column need not be there yet.
CREATE FUNCTION cluster.job_table_changes(job_table text, concurrency_key text DEFAULT NULL)
RETURNS SETOF text LANGUAGE plpgsql STABLE AS $$
DECLARE
    target regclass := cluster.find_job_table(job_table);
    parts text[] := parse_ident(job_table);
    key text := coalesce(concurrency_key, (SELECT t.concurrency_key FROM cluster.job_types t WHERE t.job_table = target), '');
    relation text;
    additions text;
    misfit record;
    present record;
BEGIN
    relation := (SELECT string_agg(format('%I', part), '.' ORDER BY place) FROM unnest(parts) WITH ORDINALITY AS p (part, place));
    IF target IS NULL THEN
        RETURN NEXT format(E'CREATE TABLE %s (\n    %s\n)', relation,
            (SELECT string_agg(rtrim(format('%I %s %s', c.name, c.type, c.definition)), E',\n    ') FROM cluster.standard_columns() c));
    ELSE
        SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS actual, c.type AS wanted INTO misfit
        FROM cluster.standard_columns() c
        JOIN pg_attribute a ON a.attrelid = target AND a.attname = c.name AND NOT a.attisdropped
        WHERE a.atttypid <> c.type::regtype AND NOT (c.name = 'id' AND a.atttypid IN ('integer'::regtype, 'smallint'::regtype))
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'column % of table % is %, but a job table needs %', misfit.name, target, misfit.actual, misfit.wanted
                USING ERRCODE = 'datatype_mismatch';
        ELSIF EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = target AND a.attname = 'id' AND NOT a.attisdropped)
            AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = target AND a.attname = 'id'
                            WHERE i.indrelid = target AND i.indisprimary AND i.indnatts = 1 AND i.indkey[0] = a.attnum)
        THEN
            RAISE EXCEPTION 'column id of table % is not its primary key', target USING ERRCODE = 'invalid_table_definition';
        ELSIF EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = target AND a.attname = 'id' AND a.attidentity = '' AND NOT a.atthasdef)
        THEN
            RAISE EXCEPTION 'column id of table % does not number new rows', target
                USING ERRCODE = 'invalid_table_definition', HINT = 'Make it GENERATED BY DEFAULT AS IDENTITY.';
        END IF;
        -- A column that is there may come from another tool: without its default, plain inserts would not run.
        additions := (SELECT string_agg(change, E',\n    ')
            FROM cluster.standard_columns() c
            LEFT JOIN pg_attribute a ON a.attrelid = target AND a.attname = c.name AND NOT a.attisdropped
            CROSS JOIN LATERAL (VALUES
                (a.attname IS NULL, rtrim(format('ADD COLUMN %I %s %s', c.name, c.type, c.definition))),
                (c.definition LIKE 'NOT NULL DEFAULT %' AND NOT a.atthasdef,
                 format('ALTER COLUMN %I SET DEFAULT %s', c.name, substr(c.definition, 18))),
                (c.definition LIKE 'NOT NULL %' AND NOT a.attnotnull, format('ALTER COLUMN %I SET NOT NULL', c.name))
            ) AS needed (missing, change)
            WHERE missing);
        IF additions IS NOT NULL THEN
            RETURN NEXT format(E'ALTER TABLE %s\n    %s', relation, additions);
        END IF;
    END IF;
    IF key <> '' AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = target AND attname = 'parked' AND NOT attisdropped) THEN
        RETURN NEXT format('ALTER TABLE %s ADD COLUMN parked boolean NOT NULL DEFAULT false', relation);
    END IF;
    RETURN QUERY SELECT format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (%s)', relation, k.name, k.condition)
        FROM cluster.standard_checks(key) k
        WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = target AND conname = k.name);
    RETURN QUERY SELECT format('ALTER TABLE %s VALIDATE CONSTRAINT %I', relation, conname)
        FROM pg_constraint WHERE conrelid = target AND conname LIKE 'cluster\_%' AND NOT convalidated;
    -- Recognised by what they index, not by their name: the table may have been renamed.
    -- The key has changed, come or gone: what belongs to the old one goes, and its rows are claimed anew. So does half an index.
    FOR present IN
        SELECT p.name, p.definition, p.valid FROM cluster.partial_indexes(target) p
        WHERE CASE
            WHEN NOT p.valid THEN p.name ~ '_(claim|others|queue|due|running|open|open_others|open_queue|parked|running_key)"?$'
            WHEN p.name ~ '_(open|parked|running_key)"?$' OR p.definition ~ '\(((\w+|"[^"]+"), )?priority, run_at, id\) WHERE '
            THEN p.definition ~ 'parked|''(running|not_started)'''
                AND NOT EXISTS (SELECT FROM cluster.standard_indexes(key) x WHERE cluster.is_index(p.definition, x.definition))
            ELSE false END
    LOOP
        IF present.valid AND present.definition LIKE '% WHERE parked' THEN
            RETURN NEXT format('UPDATE %s SET parked = false WHERE parked', relation);
        END IF;
        RETURN NEXT format('DROP INDEX %s', present.name);
    END LOOP;
    RETURN QUERY SELECT format('CREATE INDEX %I ON %s %s', cluster.index_name(parts[cardinality(parts)], x.suffix), relation, x.definition)
        FROM cluster.standard_indexes(key) x
        WHERE NOT EXISTS (SELECT FROM cluster.partial_indexes(target) p WHERE p.valid AND cluster.is_index(p.definition, x.definition));
    RETURN QUERY SELECT format('CREATE TRIGGER %I %s ON %s %s', t.name, t.timing, relation, t.action)
        FROM cluster.standard_triggers(key) t
        WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target AND tgname = t.name);
    -- Every job rewrites its row twice: leave room on the page, and vacuum early.
    IF NOT EXISTS (SELECT FROM pg_class WHERE oid = target AND reloptions::text LIKE '%autovacuum_vacuum_scale_factor%') THEN
        RETURN NEXT format('ALTER TABLE %s SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, '
            'autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 1, autovacuum_vacuum_cost_limit = 2000, '
            'autovacuum_analyze_scale_factor = 0.05)', relation);
    END IF;
END $$;

-- Makes a table a job table: creates it, or adds what is missing. Safe to call again; then it takes no lock.
-- concurrency_key: the column whose values have a limit of max_concurrency each. '': none, the limit is the table's; NULL: as it was.
CREATE FUNCTION cluster.create_job_table(job_table text, concurrency_key text DEFAULT NULL) RETURNS regclass LANGUAGE plpgsql AS $$
DECLARE
    change text;
    made regclass := to_regclass(job_table);
BEGIN
    IF concurrency_key <> '' AND NOT EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = made AND a.attname = create_job_table.concurrency_key AND NOT a.attisdropped
    ) THEN
        RAISE EXCEPTION 'table % has no column % for its concurrency_key', job_table, concurrency_key
            USING ERRCODE = 'undefined_column', HINT = 'Add the column first.';
    END IF;
    FOR change IN SELECT * FROM cluster.job_table_changes(job_table, concurrency_key) LOOP
        EXECUTE change;
    END LOOP;
    made := to_regclass(job_table);
    DELETE FROM cluster.job_types t WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = t.job_table);
    INSERT INTO cluster.job_types (name, job_table) VALUES (made::text, made) ON CONFLICT DO NOTHING;
    UPDATE cluster.job_types t SET concurrency_key = nullif(create_job_table.concurrency_key, '')
        WHERE t.job_table = made AND t.concurrency_key IS DISTINCT FROM nullif(create_job_table.concurrency_key, '')
        AND create_job_table.concurrency_key IS NOT NULL;
    RETURN made;
END $$;

CREATE FUNCTION cluster.require_job_table(job_table regclass) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM cluster.job_types t WHERE t.job_table::oid = require_job_table.job_table::oid) THEN
        RAISE EXCEPTION '% is not a job table', job_table
            USING ERRCODE = 'wrong_object_type', HINT = 'Job tables are listed in cluster.job_types.';
    END IF;
END $$;

-- Ends a job. Queued: at once. Running: its node is told and stops it; until then the row stays running.
-- Returns the status the row has now; NULL: there is no such job. A finished job stays as it is.
CREATE FUNCTION cluster.cancel(job_table regclass, job_id bigint) RETURNS cluster.job_status LANGUAGE plpgsql AS $$
DECLARE
    current cluster.job_status;
BEGIN
    PERFORM cluster.require_job_table(job_table);
    EXECUTE format('SELECT status FROM %s WHERE id = $1 FOR NO KEY UPDATE', job_table) INTO current USING job_id;
    IF current::text IN ('scheduled', 'not_started', 'retry') THEN
        EXECUTE format('UPDATE %s SET status = ''cancelled'', finished_at = now(), updated_at = now() WHERE id = $1', job_table)
            USING job_id;
        RETURN 'cancelled';
    ELSIF current::text = 'running' THEN
        EXECUTE format('UPDATE %s SET cancel_requested_at = coalesce(cancel_requested_at, now()), updated_at = now() WHERE id = $1', job_table)
            USING job_id;
        PERFORM pg_notify('cluster_cancel', job_table::oid || ' ' || job_id);
    END IF;
    RETURN current;
END $$;

-- Runs a finished job again, with attempts and crashes from 0. Returns its new status; NULL: there is no such job.
CREATE FUNCTION cluster.retry(job_table regclass, job_id bigint) RETURNS cluster.job_status LANGUAGE plpgsql AS $$
DECLARE
    current cluster.job_status;
BEGIN
    PERFORM cluster.require_job_table(job_table);
    EXECUTE format('SELECT status FROM %s WHERE id = $1 FOR NO KEY UPDATE', job_table) INTO current USING job_id;
    IF current IS NULL THEN
        RETURN NULL;
    ELSIF current::text NOT IN ('succeeded', 'failed', 'timed_out', 'cancelled') THEN
        RAISE EXCEPTION 'job % of % is %, not finished', job_id, job_table, current
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = CASE WHEN current::text = 'running' THEN 'Cancel it first.' ELSE 'To run it now, set its run_at to now().' END;
    END IF;
    EXECUTE format('UPDATE %s SET status = ''not_started'', run_at = now(), attempts_count = 0, crashes_count = 0, locked_by = NULL, '
        'started_at = NULL, finished_at = NULL, cancel_requested_at = NULL, updated_at = now() WHERE id = $1', job_table) USING job_id;
    RETURN 'not_started';
END $$;

-- Pauses a job type: nothing of it begins until cluster.resume; what runs goes on. Without a table: everything, also types that come
-- later. What is paused already stays so, for its own reason.
CREATE FUNCTION cluster.pause(job_table regclass DEFAULT NULL, reason text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF job_table IS NULL THEN
        PERFORM cluster.pause('*'::text, reason);
    ELSE
        PERFORM cluster.require_job_table(job_table);
    END IF;
    -- With everything at one time: that is how cluster.resume knows them again.
    UPDATE cluster.job_types t SET paused_reason = pause.reason, paused_at = CASE WHEN pause.job_table IS NULL
        THEN (SELECT q.paused_at FROM cluster.queues q WHERE q.name = '*') ELSE now() END
    WHERE t.paused_at IS NULL AND coalesce(t.job_table::oid = pause.job_table::oid, true);
END $$;

CREATE FUNCTION cluster.pause(queue text, reason text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM cluster.require_queue(queue);
    INSERT INTO cluster.queues AS q (name, paused_at, paused_reason) VALUES (queue, now(), reason)
    ON CONFLICT (name) DO UPDATE SET paused_at = excluded.paused_at, paused_reason = excluded.paused_reason WHERE q.paused_at IS NULL;
END $$;

-- The end of a pause of the same words. Without a table: of the pause of everything; what was paused by itself stays so.
CREATE FUNCTION cluster.resume(job_table regclass DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF job_table IS NOT NULL THEN
        PERFORM cluster.require_job_table(job_table);
    END IF;
    UPDATE cluster.job_types t SET paused_at = NULL, paused_reason = NULL
    WHERE CASE WHEN resume.job_table IS NOT NULL THEN t.job_table::oid = resume.job_table::oid
               ELSE t.paused_at = (SELECT q.paused_at FROM cluster.queues q WHERE q.name = '*') END;
    UPDATE cluster.queues q SET paused_at = NULL, paused_reason = NULL WHERE q.name = '*' AND resume.job_table IS NULL;
END $$;

CREATE FUNCTION cluster.resume(queue text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM cluster.require_queue(queue);
    UPDATE cluster.queues q SET paused_at = NULL, paused_reason = NULL WHERE q.name = queue;
END $$;

-- A word without a type is a queue for Postgres; who writes a table's name means the table.
CREATE FUNCTION cluster.require_queue(queue text) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF EXISTS (SELECT FROM cluster.job_types t WHERE t.job_table::oid = to_regclass(quote_ident(queue))::oid)
        OR EXISTS (SELECT FROM cluster.job_types t WHERE queue LIKE '%.%' AND t.job_table::text = queue)
    THEN
        RAISE EXCEPTION '% is a job table, and a word without a type is taken for a queue', queue
            USING ERRCODE = 'wrong_object_type', HINT = format('Write %L::regclass.', queue);
    END IF;
END $$;

-- Drains: nodes that are to claim nothing more, and finish what runs, until their row goes. A table of its own without a foreign key,
-- and no column of cluster.nodes: whoever leaves a transaction open holds up neither a heartbeat nor a rescue.

CREATE TABLE cluster.drains (
    node         uuid PRIMARY KEY,
    requested_at timestamptz NOT NULL DEFAULT now(),
    reason       text
);
COMMENT ON TABLE cluster.drains IS 'Nodes that were told to drain; see cluster.drain. A new start of a node is another node, and does not drain.';

CREATE TRIGGER announce_change AFTER INSERT OR DELETE ON cluster.drains FOR EACH ROW EXECUTE FUNCTION cluster.announce_change();

-- Those that live, by id, host:pid, or host: then all of that host.
CREATE FUNCTION cluster.find_nodes(node text) RETURNS SETOF uuid LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY SELECT n.id FROM cluster.nodes n
        WHERE n.state IN ('live', 'draining') AND node IN (n.id::text, n.hostname || ':' || n.pid, n.hostname);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no node % that lives', node
            USING ERRCODE = 'undefined_object', HINT = 'Name it by its id, by host:pid, or by its host: see cluster.nodes.';
    END IF;
END $$;

-- Nodes stop claiming within a heartbeat, finish what runs, and stay, draining, until cluster.undrain or their end. Which they are.
-- What drains already does so for its own reason.
CREATE FUNCTION cluster.drain(node text, reason text DEFAULT NULL) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO cluster.drains (node, reason) SELECT cluster.find_nodes(drain.node), drain.reason ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT cluster.find_nodes(drain.node);
END $$;

CREATE FUNCTION cluster.drain(node uuid, reason text DEFAULT NULL) RETURNS SETOF uuid LANGUAGE sql AS $$
    SELECT cluster.drain(node::text, reason)
$$;

-- The end of it: they claim again. Which they are, whether they drained or not.
CREATE FUNCTION cluster.undrain(node text) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM cluster.drains d WHERE d.node IN (SELECT cluster.find_nodes(undrain.node));
    RETURN QUERY SELECT cluster.find_nodes(undrain.node);
END $$;

CREATE FUNCTION cluster.undrain(node uuid) RETURNS SETOF uuid LANGUAGE sql AS $$
    SELECT cluster.undrain(node::text)
$$;

-- Schedules: rows that insert job rows. Times of cron are computed by nodes, in cluster/recurrence.py; plan_from says that they have to.
-- next_due_at: the next occurrence on the grid, which stays there as its anchor while nothing is due; next_run_at: the same with its
-- jitter. wake_at: when a node has to look at the row, whatever for; kept by the trigger, for all that write. not_before: the next
-- occurrence waits until then at least, for an earlier job or since something is locked.
-- expect_from: the first occurrence whose job has not succeeded. revision: goes up whenever what a node has computed is void.
CREATE TABLE cluster.schedules (
    name          text PRIMARY KEY CONSTRAINT "a schedule's name has 1 to 128 characters" CHECK (length(name) BETWEEN 1 AND 128),
    job_table     regclass NOT NULL,
    job_values    jsonb NOT NULL DEFAULT '{}'
                  CONSTRAINT "job_values is an object of columns and values" CHECK (jsonb_typeof(job_values) = 'object'),
    cron          text,
    every         interval CONSTRAINT "every is 1 second to 3650 days, and not in months"
                  CHECK (every BETWEEN interval '1 second' AND interval '3650 days' AND date_trunc('month', every) = interval '0'),
    time_zone     text NOT NULL DEFAULT 'UTC',
    starts_at     timestamptz,
    ends_at       timestamptz,
    jitter        interval NOT NULL DEFAULT interval '0' CONSTRAINT "jitter is 0 to 3650 days, and not in months"
                  CHECK (jitter BETWEEN interval '0' AND interval '3650 days' AND date_trunc('month', jitter) = interval '0'),
    run_once      boolean NOT NULL DEFAULT false,
    active        boolean NOT NULL DEFAULT true,
    paused_at     timestamptz,
    paused_reason text,
    state         text NOT NULL DEFAULT 'active' CONSTRAINT "state is one of the six of a schedule"
                  CHECK (state IN ('active', 'sleeping', 'stopped', 'deactivated', 'run_once_waiting', 'run_once_done')),
    overlap       text NOT NULL DEFAULT 'skip' CONSTRAINT "overlap is skip, queue_one, allow or cancel_running"
                  CHECK (overlap IN ('skip', 'queue_one', 'allow', 'cancel_running')),
    misfire       text NOT NULL DEFAULT 'one' CONSTRAINT "misfire is skip, one or all" CHECK (misfire IN ('skip', 'one', 'all')),
    expect_within interval CONSTRAINT "expect_within is more than 0, and at most 3650 days"
                  CHECK (expect_within > interval '0' AND expect_within <= interval '3650 days'),
    overdue_since timestamptz,
    on_error      text NOT NULL DEFAULT 'deactivate' CONSTRAINT "on_error is deactivate or keep" CHECK (on_error IN ('deactivate', 'keep')),
    next_run_at   timestamptz,
    last_run_at   timestamptz,
    last_outcome  text,
    last_error    text,
    missed        bigint NOT NULL DEFAULT 0,
    source        text NOT NULL DEFAULT 'user' CONSTRAINT "source is user or code" CHECK (source IN ('user', 'code')),
    declared_in   text,
    next_due_at   timestamptz,
    plan_from     timestamptz,
    not_before    timestamptz,
    expect_from   timestamptz,
    wake_at       timestamptz,
    revision      bigint NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT "a schedule has either cron or every" CHECK (num_nonnulls(cron, every) = 1),
    CONSTRAINT "ends_at is after starts_at" CHECK (ends_at > starts_at),
    CONSTRAINT "starts_at is a moment of our era" CHECK (starts_at >= '0001-01-02 00:00:00+00' AND starts_at < '9999-12-31 00:00:00+00'),
    CONSTRAINT "ends_at is a moment of our era" CHECK (ends_at >= '0001-01-02 00:00:00+00' AND ends_at < '9999-12-31 00:00:00+00'),
    CONSTRAINT "the cluster's own times are moments of our era" CHECK (greatest(next_due_at, next_run_at, plan_from) < '9999-12-31 00:00:00+00'
        AND least(next_due_at, next_run_at, plan_from) >= '0001-01-02 00:00:00+00'),
    CONSTRAINT "jitter is not longer than every" CHECK (jitter <= every),
    CONSTRAINT "a schedule is deactivated exactly while it is not active" CHECK ((state = 'deactivated') = (NOT active))
) WITH (fillfactor = 80);
COMMENT ON TABLE cluster.schedules IS 'Each inserts job rows by cron or at intervals. From next_due_at on, columns belong to the cluster.';
COMMENT ON COLUMN cluster.schedules.declared_in IS 'Of those of the code: the module of the class.';
COMMENT ON COLUMN cluster.schedules.missed IS 'Occurrences that came while nobody was up, or while an earlier job ran, and have no job.';
CREATE INDEX schedules_wake ON cluster.schedules (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX schedules_state ON cluster.schedules (state);
CREATE INDEX schedules_overdue ON cluster.schedules (overdue_since) WHERE overdue_since IS NOT NULL;

-- One row for each occurrence. job_id NULL: it has no job, outcome says why.
CREATE TABLE cluster.schedule_runs (
    name        text NOT NULL,
    due_at      timestamptz NOT NULL,
    job_id      bigint,
    job_table   regclass NOT NULL,
    fired_at    timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz,
    finished_at timestamptz,
    outcome     text,
    PRIMARY KEY (name, due_at)
);
COMMENT ON TABLE cluster.schedule_runs IS 'The history of schedules, kept for 30 days, also of those that are gone.';
CREATE INDEX schedule_runs_unfinished ON cluster.schedule_runs (name) WHERE finished_at IS NULL;
CREATE INDEX schedule_runs_due ON cluster.schedule_runs (due_at);

CREATE TABLE cluster.schedule_service (
    is_only_row     boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    boots           bigint NOT NULL DEFAULT 0,
    booted_at       timestamptz,
    reloading_since timestamptz,
    reloaded_at     timestamptz
);
COMMENT ON TABLE cluster.schedule_service IS 'One row: when the cluster was last started, no node having been live for a lease, and the last reload; reloading_since: one is under way.';
INSERT INTO cluster.schedule_service DEFAULT VALUES;

-- Inserts a job that is taken back again: nothing else knows what types, NOT NULL, checks, foreign keys and triggers say. What
-- triggers of the table do is undone with it; a number of its sequence is used up. Another job that is in the way may be gone later.
CREATE FUNCTION cluster.try_job(job_table regclass, job_values jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wrong text;
BEGIN
    PERFORM cluster.require_job_table(job_table);
    SELECT key INTO wrong FROM jsonb_object_keys(job_values) AS key
    WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = job_table AND attname = key AND attnum > 0 AND NOT attisdropped) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'table % has no column %', job_table, quote_ident(wrong) USING ERRCODE = 'undefined_column';
    END IF;
    SELECT key INTO wrong FROM jsonb_object_keys(job_values) AS key
    WHERE key NOT IN ('queue', 'priority') AND key IN (SELECT c.name FROM cluster.standard_columns() AS c) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'column % belongs to the cluster: a schedule may not set it', quote_ident(wrong) USING ERRCODE = 'check_violation';
    END IF;
    BEGIN
        EXECUTE cluster.insert_of_job(job_table, job_values) USING job_values;
        RAISE EXCEPTION 'taken back' USING ERRCODE = 'JC001';
    EXCEPTION WHEN SQLSTATE 'JC001' OR unique_violation OR exclusion_violation THEN
    END;
END $$;

-- An INSERT of one job whose values are $1, with the table's defaults for all others.
CREATE FUNCTION cluster.insert_of_job(job_table regclass, job_values jsonb) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN job_values = '{}' THEN format('INSERT INTO %s DEFAULT VALUES', job_table)
                ELSE format('INSERT INTO %s (%s) SELECT %s FROM jsonb_populate_record(NULL::%s, $1) AS v', job_table,
                            string_agg(quote_ident(key), ', ' ORDER BY key), string_agg('v.' || quote_ident(key), ', ' ORDER BY key),
                            job_table) END
    FROM (SELECT jsonb_object_keys(job_values) AS key) AS keys
$$;

-- Reading the list of all zones takes milliseconds; what looks like Europe/Berlin Postgres need only try. Other words that it would take
-- are abbreviations and formulas, which Python does not know.
CREATE FUNCTION cluster.is_time_zone(name text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF name !~ '^[A-Za-z_]+/[-A-Za-z0-9_+/]+$' THEN
        RETURN EXISTS (SELECT FROM pg_timezone_names AS z WHERE z.name = is_time_zone.name);
    END IF;
    PERFORM now() AT TIME ZONE name;
    RETURN true;
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN false;
END $$;

-- The words of a cron that has the right number of fields and nothing strange in them. What is wrong beyond that a node finds.
CREATE FUNCTION cluster.check_times(cron text, time_zone text) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF cron LIKE '@%' AND lower(cron) NOT IN ('@hourly', '@daily', '@midnight', '@weekly', '@monthly', '@yearly', '@annually') THEN
        RAISE EXCEPTION 'there is no alias %', cron USING ERRCODE = 'invalid_parameter_value',
            HINT = 'There are @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually.';
    ELSIF cron NOT LIKE '@%' AND cron !~ '^\s*([-0-9A-Za-z*,/#()]+\s+){4}[-0-9A-Za-z*,/#()]+\s*$' THEN
        RAISE EXCEPTION 'cron % has not five fields', quote_literal(cron) USING ERRCODE = 'invalid_parameter_value',
            HINT = 'They are minute, hour, day of month, month and day of week: 0 5 * * *';
    ELSIF time_zone <> 'UTC' AND NOT cluster.is_time_zone(time_zone) THEN
        RAISE EXCEPTION 'there is no time zone %', quote_literal(time_zone) USING ERRCODE = 'invalid_parameter_value',
            HINT = (SELECT 'Did you mean ' || min(z.name) || '?' FROM pg_timezone_names AS z
                    WHERE lower(z.name) LIKE '%' || replace(lower(time_zone), ' ', '\_'));
    END IF;
END $$;

CREATE FUNCTION cluster.may_fire(schedule cluster.schedules) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT schedule.active AND schedule.paused_at IS NULL AND schedule.state IN ('active', 'sleeping', 'run_once_waiting')
$$;

-- Whoever says that a schedule is active means that it runs again, whatever has stopped it.
CREATE FUNCTION cluster.activate_schedule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.state := CASE WHEN NEW.run_once THEN 'run_once_waiting' ELSE 'active' END;
    IF OLD.state = 'sleeping' AND NEW.state = 'active' AND NEW.paused_at IS NULL THEN
        NEW.revision := NEW.revision + 1;
        NEW.next_run_at := NULL;
        NEW.plan_from := now();
    END IF;
    IF NEW.state = 'run_once_waiting' AND NEW.next_run_at IS NULL AND NEW.paused_at IS NULL THEN
        NEW.plan_from := now();
    END IF;
    IF NOT OLD.active THEN
        NEW.last_error := NULL;
        NEW.expect_from := NULL;
        NEW.overdue_since := NULL;
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION cluster.keep_schedule() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before cluster.schedules := CASE TG_OP WHEN 'UPDATE' THEN OLD END;  -- all NULL: it is new
    is_new boolean := TG_OP = 'INSERT';
    times_differ boolean := (NEW.name, NEW.cron, NEW.every, NEW.time_zone, NEW.starts_at, NEW.ends_at, NEW.jitter) IS DISTINCT FROM
        (before.name, before.cron, before.every, before.time_zone, before.starts_at, before.ends_at, before.jitter);
BEGIN
    IF is_new THEN
        NEW.state := CASE WHEN NOT NEW.active THEN 'deactivated' WHEN NEW.run_once THEN 'run_once_waiting' ELSE 'active' END;
        NEW.next_run_at := NULL;
        NEW.next_due_at := NULL;
    ELSIF NOT NEW.active THEN
        NEW.state := 'deactivated';
    ELSIF NEW.state = 'deactivated' THEN
        NEW.active := false;
    ELSIF NEW.run_once AND NOT before.run_once THEN
        NEW.state := 'run_once_waiting';
    ELSIF before.run_once AND NOT NEW.run_once AND NEW.state LIKE 'run_once%' THEN
        NEW.state := 'active';
    END IF;
    IF is_new OR (NEW.cron, NEW.time_zone) IS DISTINCT FROM (before.cron, before.time_zone) THEN
        PERFORM cluster.check_times(NEW.cron, NEW.time_zone);
    END IF;
    IF is_new OR (NEW.job_table::oid, NEW.job_values) IS DISTINCT FROM (before.job_table::oid, before.job_values) THEN
        IF jsonb_typeof(NEW.job_values) = 'object' THEN
            PERFORM cluster.try_job(NEW.job_table, NEW.job_values);
        END IF;
    END IF;
    IF times_differ OR (NEW.job_table::oid, NEW.job_values, NEW.overlap, NEW.misfire)
        IS DISTINCT FROM (before.job_table::oid, before.job_values, before.overlap, before.misfire)
    THEN
        NEW.revision := NEW.revision + 1;
    END IF;
    IF NOT cluster.may_fire(NEW) THEN
        NEW.next_run_at := NULL;
        NEW.plan_from := NULL;
        NEW.not_before := NULL;
    ELSIF times_differ OR coalesce(cluster.may_fire(before), false) = false OR (NEW.state = 'run_once_waiting' AND before.state IS DISTINCT FROM 'run_once_waiting') THEN
        NEW.revision := NEW.revision + 1;
        NEW.next_run_at := NULL;
        NEW.not_before := NULL;
        IF times_differ OR NEW.run_once THEN
            NEW.next_due_at := NULL;  -- the grid begins anew
        END IF;
        NEW.plan_from := now();
        IF NEW.every IS NOT NULL AND NEW.next_due_at IS NULL AND NEW.jitter = interval '0' AND coalesce(NEW.starts_at > now(), true) THEN
            NEW.next_due_at := coalesce(NEW.starts_at, now() + make_interval(secs => extract(epoch FROM NEW.every)::float8));
            NEW.plan_from := NULL;
            IF NEW.next_due_at > NEW.ends_at THEN
                NEW.next_due_at := NULL;
            END IF;
            NEW.next_run_at := NEW.next_due_at;
        END IF;
    END IF;
    IF NEW.expect_within IS NULL THEN
        NEW.expect_from := NULL;
        NEW.overdue_since := NULL;
    END IF;
    NEW.wake_at := least(greatest(coalesce(NEW.plan_from, NEW.next_run_at), NEW.not_before),
                         CASE WHEN NEW.overdue_since IS NULL THEN NEW.expect_from + NEW.expect_within END);
    RETURN NEW;
END $$;

-- Nodes sleep until the first of all wake_at: only an earlier one is news to them.
CREATE FUNCTION cluster.announce_schedule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR OLD.wake_at IS NULL OR NEW.wake_at < OLD.wake_at THEN
        PERFORM pg_notify('cluster_schedules', '');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER activate BEFORE UPDATE OF active ON cluster.schedules FOR EACH ROW
    WHEN (NEW.active) EXECUTE FUNCTION cluster.activate_schedule();
CREATE TRIGGER keep BEFORE INSERT OR UPDATE ON cluster.schedules FOR EACH ROW EXECUTE FUNCTION cluster.keep_schedule();
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON cluster.schedules FOR EACH ROW
    WHEN (NEW.wake_at IS NOT NULL) EXECUTE FUNCTION cluster.announce_schedule();

-- Inserts the jobs of occurrences of schedules with the same table and the same columns, and stores the occurrences. Callers have
-- locked the schedules, so nobody else stores one meanwhile. Of each occurrence: its schedule's name, its time, the job's run_at and
-- values; those that are stored are left out. Where the table's own triggers let no row come, the occurrence is stored without one.
-- Returns how many were stored.
CREATE FUNCTION cluster.insert_occurrences(job_table regclass, names text[], dues timestamptz[], runs timestamptz[], job_values jsonb[])
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    stored bigint;
    columns text := (SELECT string_agg(', ' || quote_ident(key), '' ORDER BY key) FROM jsonb_object_keys(job_values[1]) AS key);
    picked text := (SELECT string_agg(', v.' || quote_ident(key), '' ORDER BY key) FROM jsonb_object_keys(job_values[1]) AS key);
BEGIN
    EXECUTE format($sql$
        WITH occurrence AS MATERIALIZED (
            SELECT o.* FROM unnest($1, $2, $3, $4) AS o (name, due_at, run_at, values)
            WHERE NOT EXISTS (SELECT FROM cluster.schedule_runs AS r WHERE r.name = o.name AND r.due_at = o.due_at)
        ), made AS (
            INSERT INTO %1$s (schedule, scheduled_for, run_at%2$s)
            SELECT o.name, o.due_at, o.run_at%3$s FROM occurrence AS o%4$s
            ORDER BY o.run_at
            RETURNING id, schedule, scheduled_for
        )
        INSERT INTO cluster.schedule_runs (name, due_at, job_id, job_table, finished_at, outcome)
        SELECT o.name, o.due_at, made.id, %5$s::oid, CASE WHEN made.id IS NULL THEN now() END, CASE WHEN made.id IS NULL THEN 'refused' END
        FROM occurrence AS o LEFT JOIN made ON made.schedule = o.name AND made.scheduled_for = o.due_at
        $sql$, job_table, columns, picked, CASE WHEN picked IS NOT NULL THEN format(', jsonb_populate_record(NULL::%s, o.values) AS v', job_table) END,
        job_table::oid) USING names, dues, runs, job_values;
    GET DIAGNOSTICS stored = ROW_COUNT;
    RETURN stored;
END $$;

-- Whether what an error says may pass by itself: locks, deadlocks, a full disk, a privilege that another node's role has.
CREATE FUNCTION cluster.may_pass(sqlstate text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT left(sqlstate, 2) IN ('08', '40', '53', '55', '57', '58') OR sqlstate = '42501'
$$;

-- A schedule that is due and locked, and what is to become of it. was_due_at: next_run_at as it was. fire: [{due_at, run_at}]. holds: while
-- an earlier job is not finished it waits for that, and is not left out.
CREATE TYPE cluster.firing AS (
    name text, job_values jsonb, overlap text, on_error text, was_due_at timestamptz, fire jsonb, next_due_at timestamptz,
    next_run_at timestamptz, missed bigint, holds boolean
);

-- What is due, as a node has computed it: for each schedule the occurrences to fire, and what comes next. One transaction: a schedule
-- that somebody has changed, fired or locked meanwhile is left out. Lock order: schedules by name; jobs are only inserted.
-- plans: name, revision, due_at (next_due_at as it was), fire, next_due_at, next_run_at, missed, holds.
-- Returns for each: fired, skipped (an earlier job is not finished), held (the same, and it waits for that), missed, failed or postponed;
-- lag in seconds, of the first occurrence.
CREATE FUNCTION cluster.fire_schedules(plans jsonb)
RETURNS TABLE (schedule text, result text, lag float8, error text) LANGUAGE plpgsql AS $$
DECLARE
    batch record;
BEGIN
    FOR batch IN
        SELECT chosen.job_table, array_agg(chosen.firing) AS firings FROM (
            SELECT s.job_table, s.job_values, ROW(s.name, s.job_values, s.overlap, s.on_error, s.next_run_at, p.fire, p.next_due_at,
                                                  p.next_run_at, p.missed, coalesce(p.holds, false))::cluster.firing AS firing
            FROM jsonb_to_recordset(plans) AS p (name text, revision bigint, due_at timestamptz, fire jsonb, next_due_at timestamptz,
                                                 next_run_at timestamptz, missed bigint, holds boolean)
            JOIN cluster.schedules AS s ON s.name = p.name
            WHERE s.revision = p.revision AND s.next_due_at = p.due_at AND s.next_run_at <= now() AND s.wake_at <= now()
              AND cluster.may_fire(s)
            ORDER BY s.name FOR NO KEY UPDATE OF s SKIP LOCKED
        ) AS chosen
        GROUP BY chosen.job_table::oid, chosen.job_table,
                 CASE WHEN job_values <> '{}' THEN (SELECT array_agg(key ORDER BY key) FROM jsonb_object_keys(chosen.job_values) AS key) END
    LOOP
        RETURN QUERY SELECT * FROM cluster.fire_part(batch.job_table, batch.firings);
    END LOOP;
END $$;

-- Fires schedules of one table and the same columns. What refuses takes nobody with it: it is looked for by halves. A schedule alone with
-- an error is deactivated, or goes on without its job if its on_error says so, or waits for two seconds where the error may pass.
CREATE FUNCTION cluster.fire_part(job_table regclass, firings cluster.firing[])
RETURNS TABLE (schedule text, result text, lag float8, error text) LANGUAGE plpgsql AS $$
DECLARE
    busy text[];
    code text;
    message text;
    half integer := cardinality(firings) / 2;
    is_there boolean := EXISTS (SELECT FROM pg_class WHERE oid = job_table);
BEGIN
    BEGIN
        IF NOT is_there THEN
            RAISE EXCEPTION 'its job table was dropped' USING ERRCODE = 'undefined_table';
        END IF;
        busy := cluster.busy_schedules(job_table, firings);
        PERFORM cluster.fire_batch(job_table, firings, busy);
        RETURN QUERY SELECT f.name, CASE WHEN f.name <> ALL (busy) THEN CASE WHEN f.fire = '[]' THEN 'missed' ELSE 'fired' END
                                    WHEN f.holds THEN 'held' ELSE 'skipped' END,
                            extract(epoch FROM clock_timestamp() - f.was_due_at)::float8, NULL::text
                     FROM unnest(firings) AS f;
        RETURN;
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
    END;
    IF half > 0 AND is_there AND NOT cluster.may_pass(code) THEN
        RETURN QUERY SELECT * FROM cluster.fire_part(job_table, firings[:half]);
        RETURN QUERY SELECT * FROM cluster.fire_part(job_table, firings[half + 1:]);
        RETURN;
    END IF;
    IF cluster.may_pass(code) THEN
        UPDATE cluster.schedules AS s SET not_before = now() + interval '2 seconds', last_error = message
        FROM unnest(firings) AS f WHERE s.name = f.name;
    ELSE
        UPDATE cluster.schedules AS s SET last_error = message, last_outcome = 'failed', expect_from = coalesce(s.expect_from, s.next_due_at),
            state = CASE f.on_error WHEN 'keep' THEN s.state ELSE 'deactivated' END,
            missed = s.missed + CASE f.on_error WHEN 'keep' THEN 1 ELSE 0 END,
            next_due_at = CASE f.on_error WHEN 'keep' THEN f.next_due_at ELSE s.next_due_at END,
            next_run_at = CASE f.on_error WHEN 'keep' THEN f.next_run_at ELSE s.next_run_at END
        FROM unnest(firings) AS f WHERE s.name = f.name;
    END IF;
    RETURN QUERY SELECT f.name, CASE WHEN cluster.may_pass(code) THEN 'postponed' ELSE 'failed' END, NULL::float8, message
                 FROM unnest(firings) AS f;
END $$;

-- Names of those whose overlap matters and that have a job which is not finished. The job's row decides: it may be gone without a word.
CREATE FUNCTION cluster.busy_schedules(job_table regclass, firings cluster.firing[]) RETURNS text[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    busy text[];
BEGIN
    EXECUTE format($sql$
        SELECT coalesce(array_agg(DISTINCT r.name), '{}') FROM cluster.schedule_runs AS r
        WHERE r.finished_at IS NULL AND r.job_table = %2$s::oid AND r.name = ANY ($1)
          AND EXISTS (SELECT FROM %1$s AS job WHERE job.id = r.job_id AND job.finished_at IS NULL)
        $sql$, job_table, job_table::oid)
    INTO busy USING ARRAY(SELECT f.name FROM unnest(firings) AS f WHERE f.overlap <> 'allow');
    RETURN busy;
END $$;

-- The schedules of one table: jobs and occurrences of those that are not busy, and what comes next for all but those that wait.
CREATE FUNCTION cluster.fire_batch(job_table regclass, firings cluster.firing[], busy text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM cluster.insert_occurrences(job_table, names, dues, runs, job_values) FROM (
        SELECT array_agg(f.name) AS names, array_agg((o ->> 'due_at')::timestamptz) AS dues,
               array_agg((o ->> 'run_at')::timestamptz) AS runs, array_agg(f.job_values) AS job_values
        FROM unnest(firings) AS f, jsonb_array_elements(f.fire) AS o WHERE f.name <> ALL (busy)
    ) AS occurrences WHERE names IS NOT NULL;
    UPDATE cluster.schedules AS s SET  -- what runs once has nothing to come, whatever its job does
        next_due_at = CASE WHEN s.state = 'run_once_waiting' AND f.fire <> '[]' AND f.name <> ALL (busy) THEN NULL ELSE f.next_due_at END,
        next_run_at = CASE WHEN s.state = 'run_once_waiting' AND f.fire <> '[]' AND f.name <> ALL (busy) THEN NULL ELSE f.next_run_at END,
        not_before = NULL,
        state = CASE WHEN s.state = 'sleeping' THEN 'active' ELSE s.state END,
        last_run_at = CASE WHEN f.name = ANY (busy) OR f.fire = '[]' THEN s.last_run_at ELSE now() END,
        missed = s.missed + f.missed + CASE WHEN f.name = ANY (busy) THEN jsonb_array_length(f.fire) ELSE 0 END,
        expect_from = CASE WHEN s.expect_within IS NOT NULL THEN coalesce(s.expect_from, s.next_due_at) END
    FROM unnest(firings) AS f
    WHERE s.name = f.name AND (f.name <> ALL (busy) OR NOT f.holds);
    IF busy = '{}' THEN
        RETURN;
    END IF;
    INSERT INTO cluster.schedule_runs (name, due_at, job_table, finished_at, outcome)
    SELECT f.name, (o ->> 'due_at')::timestamptz, job_table, now(), 'skipped'
    FROM unnest(firings) AS f, jsonb_array_elements(f.fire) AS o
    WHERE f.name = ANY (busy) AND NOT f.holds ON CONFLICT DO NOTHING;
    -- Told by the end of the job; should that go unheard, a minute later.
    UPDATE cluster.schedules AS s SET not_before = now() + interval '1 minute'
    FROM unnest(firings) AS f
    WHERE s.name = f.name AND f.name = ANY (busy) AND f.holds;
END $$;

-- Runs a schedule's job now, whatever its state; the occurrences to come stay where they are. Returns the job's id, NULL: a trigger of the
-- table let it not come.
CREATE FUNCTION cluster.run_schedule(schedule text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    chosen cluster.schedules;
    moment timestamptz;
BEGIN
    SELECT * INTO chosen FROM cluster.schedules AS s WHERE s.name = schedule FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no schedule %', quote_literal(schedule) USING ERRCODE = 'no_data_found';
    END IF;
    moment := clock_timestamp();
    PERFORM cluster.insert_occurrences(chosen.job_table, ARRAY[schedule], ARRAY[moment], ARRAY[now()], ARRAY[chosen.job_values]);
    UPDATE cluster.schedules AS s SET last_run_at = now() WHERE s.name = schedule;
    RETURN (SELECT r.job_id FROM cluster.schedule_runs AS r WHERE r.name = schedule AND r.due_at = moment);
END $$;

-- Runs occurrences of the past: which is missing (they have no job), failed (their job has), or all of both. Those that have run are left
-- alone, and so is what is still to come. dry_run: only returns them. Returns their jobs.
CREATE FUNCTION cluster.backfill_schedule(schedule text, occurrences timestamptz[], which text DEFAULT 'missing', dry_run boolean DEFAULT false)
RETURNS TABLE (due_at timestamptz, job_id bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    chosen cluster.schedules;
    dues timestamptz[];
BEGIN
    SELECT * INTO chosen FROM cluster.schedules AS s WHERE s.name = schedule FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no schedule %', quote_literal(schedule) USING ERRCODE = 'no_data_found';
    ELSIF which NOT IN ('missing', 'failed', 'all') THEN
        RAISE EXCEPTION 'which is missing, failed or all, not %', quote_literal(which) USING ERRCODE = 'invalid_parameter_value';
    ELSIF EXISTS (SELECT FROM unnest(occurrences) AS o (due) WHERE o.due >= chosen.created_at AND o.due < now() - interval '30 days') THEN
        RAISE EXCEPTION 'occurrences of more than 30 days ago may have run: their history is gone' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    dues := ARRAY(
        SELECT DISTINCT o.due FROM unnest(occurrences) AS o (due)
        LEFT JOIN cluster.schedule_runs AS r ON r.name = schedule AND r.due_at = o.due
        WHERE o.due <= now() AND (chosen.next_run_at IS NULL OR o.due < chosen.next_due_at)
          AND (r.job_id IS NULL AND which <> 'failed' OR r.outcome IN ('failed', 'timed_out') AND which <> 'missing')
        ORDER BY o.due);
    IF dry_run OR dues = '{}' THEN
        RETURN QUERY SELECT o.due, NULL::bigint FROM unnest(dues) AS o (due);
        RETURN;
    END IF;
    DELETE FROM cluster.schedule_runs AS r WHERE r.name = schedule AND r.due_at = ANY (dues);
    PERFORM cluster.insert_occurrences(chosen.job_table, array_fill(schedule, sizes), dues, array_fill(now(), sizes),
                                       array_fill(chosen.job_values, sizes))
    FROM (SELECT ARRAY[cardinality(dues)] AS sizes) AS of_all;
    RETURN QUERY SELECT r.due_at, r.job_id FROM cluster.schedule_runs AS r WHERE r.name = schedule AND r.due_at = ANY (dues) ORDER BY 1;
END $$;

-- The end of what lasts until a reload. Returns how many schedules go on.
CREATE FUNCTION cluster.reload_schedules() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    going_on bigint;
BEGIN
    UPDATE cluster.schedules AS s SET active = true WHERE s.state = 'stopped';
    GET DIAGNOSTICS going_on = ROW_COUNT;
    RETURN going_on;
END $$;

-- A job of a schedule has ended, is run again or was deleted: the occurrence and its schedule are told. Runs as the owner: whoever cancels
-- a job need not be allowed to write here; only occurrences that the cluster has stored count. What perform returned is in
-- cluster.next, by the job's id: SLEEP, STOP, EXIT, or another value that no schedule can take, behind an exclamation mark.
CREATE FUNCTION cluster.tell_schedule() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    job record;
    said text;
    verdict text;
    is_error boolean;
BEGIN
    IF TG_OP = 'DELETE' THEN
        job := OLD;
        verdict := 'deleted';
    ELSE
        job := NEW;
        IF NEW.finished_at IS NOT NULL THEN
            verdict := NEW.status::text;
            said := nullif(current_setting('cluster.next', true), '')::jsonb ->> NEW.id::text;
        END IF;
    END IF;
    UPDATE cluster.schedule_runs AS r SET
        started_at = job.started_at, outcome = coalesce(ltrim(left(said, 1), '!') || substr(said, 2), verdict),
        finished_at = CASE WHEN TG_OP = 'DELETE' THEN now() ELSE job.finished_at END
    WHERE r.name = job.schedule AND r.due_at = job.scheduled_for AND r.job_id = job.id AND r.job_table::oid = TG_RELID;
    IF NOT FOUND OR verdict IS NULL THEN
        RETURN NULL;
    END IF;
    is_error := verdict IN ('failed', 'timed_out') OR said LIKE '!%';
    UPDATE cluster.schedules AS s SET
        last_outcome = CASE WHEN said LIKE '!%' THEN 'invalid' ELSE coalesce(said, verdict) END,
        last_error = CASE WHEN said LIKE '!%' THEN 'perform returned ' || substr(said, 2) WHEN is_error THEN job.last_error ELSE s.last_error END,
        state = CASE
            WHEN NOT s.active THEN s.state
            WHEN said = 'EXIT' OR said LIKE '!%' OR (is_error AND s.on_error = 'deactivate') THEN 'deactivated'
            WHEN said = 'STOP' THEN 'stopped'
            WHEN s.run_once AND s.state = 'run_once_waiting' THEN 'run_once_done'
            WHEN said = 'SLEEP' AND s.state IN ('active', 'sleeping') THEN 'sleeping'
            ELSE s.state END,
        next_due_at = CASE WHEN said = 'SLEEP' AND s.active THEN job.started_at + interval '86400 seconds' ELSE s.next_due_at END,
        next_run_at = CASE WHEN said = 'SLEEP' AND s.active THEN job.started_at + interval '86400 seconds' ELSE s.next_run_at END,
        plan_from = CASE WHEN said = 'SLEEP' THEN NULL ELSE s.plan_from END,
        revision = s.revision + CASE WHEN said = 'SLEEP' THEN 1 ELSE 0 END,
        not_before = NULL,
        expect_from = CASE WHEN verdict <> 'succeeded' OR job.scheduled_for < s.expect_from THEN s.expect_from ELSE (
            SELECT min(r.due_at) FROM cluster.schedule_runs AS r
            WHERE r.name = s.name AND r.due_at > job.scheduled_for AND r.job_id IS NOT NULL AND r.finished_at IS NULL) END,
        overdue_since = CASE WHEN verdict <> 'succeeded' OR job.scheduled_for < s.expect_from THEN s.overdue_since END
    WHERE s.name = job.schedule AND s.job_table::oid = TG_RELID
      -- One more success is no news. Where something may wait for it, only columns that no fire writes say so: one may be under way.
      AND (verdict = 'succeeded' AND said IS NULL AND s.last_outcome = 'succeeded' AND s.state = 'active' AND s.expect_within IS NULL
           AND (s.overlap = 'allow' OR s.overlap = 'skip' AND s.misfire <> 'all')) IS NOT TRUE;
    RETURN NULL;
END $$;

-- Why a job does not run: cluster.why asks the functions below one after the other. They only read, by indexes that are there, and no
-- count goes beyond its bound. Each returns what it has found: reason, a word for programs; detail and remedy, sentences.

CREATE TYPE cluster.waiting_job AS (
    job_table regclass, job_type text, limited_to integer, concurrency_key text,
    id bigint, queue text, priority smallint, run_at timestamptz, status text, attempts_count integer, last_error text, schedule text,
    locked_by uuid, started_at timestamptz, finished_at timestamptz, cancel_requested_at timestamptz, key text, locker text
);
COMMENT ON TYPE cluster.waiting_job IS 'A job with what is to be known of its type. id NULL: none, the type in general. key: as text. locker: the transaction that last locked the row.';

-- 4 s, 12 min, 3 h, 9 d
CREATE FUNCTION cluster.in_words(span interval) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT (SELECT CASE WHEN s >= 172800 THEN s / 86400 || ' d' WHEN s >= 7200 THEN s / 3600 || ' h' WHEN s >= 120 THEN s / 60 || ' min'
                        ELSE s || ' s' END
            FROM (SELECT greatest(0, floor(extract(epoch FROM span)))::bigint AS s) AS whole)
$$;

CREATE FUNCTION cluster.in_words(number bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT to_char(number, 'FM999,999,999,999,999,990')
$$;

CREATE FUNCTION cluster.last_line(error text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left((regexp_match(right(error, 2000), '([^\n]+)\s*$'))[1], 200)
$$;

-- What is open of a server process to whom we are: others' states and times are for pg_read_all_stats.
CREATE FUNCTION cluster.describe_process(process integer) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN process IS NULL THEN 'a prepared transaction' ELSE coalesce((
        SELECT format('server process %s of role %s', a.pid, a.usename) || coalesce(', ' || a.state, '')
               || coalesce(', its transaction open for ' || cluster.in_words(clock_timestamp() - a.xact_start), '')
        FROM pg_stat_activity AS a WHERE a.pid = process
    ), format('server process %s', process)) END
$$;

-- Nodes that have not ended. state: live, draining, or silent where the lease is over.
CREATE FUNCTION cluster.nodes_for(job_type text, queue text)
RETURNS TABLE (id uuid, name text, state text, performs boolean, serves boolean, told text) LANGUAGE sql STABLE AS $$
    SELECT n.id, n.hostname || ':' || n.pid, CASE WHEN n.lease_until < now() THEN 'silent' ELSE n.state END,
           nodes_for.job_type = ANY (n.jobs), n.queues && ARRAY['*', nodes_for.queue],
           CASE WHEN n.lease_until < now() THEN ', for ' || cluster.in_words(now() - n.heartbeat_at)
                WHEN d.node IS NOT NULL THEN ', told to drain ' || cluster.in_words(now() - d.requested_at) || ' ago' || coalesce(': ' || d.reason, '')
                ELSE '' END
    FROM cluster.nodes AS n LEFT JOIN cluster.drains AS d ON d.node = n.id
    WHERE n.state IN ('live', 'draining')
$$;

CREATE FUNCTION cluster.describe_node(node uuid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT n.hostname || ':' || n.pid || CASE WHEN n.state IN ('stopped', 'lost') THEN ', which is ' || n.state
            WHEN n.lease_until < now() THEN ', silent for ' || cluster.in_words(now() - n.heartbeat_at) ELSE '' END
        FROM cluster.nodes AS n WHERE n.id = node
    ), 'a node that is gone')
$$;

-- Of those that are ready, and that will be: the one that has been so for longest, or will be first. NULL: none waits. Goes from priority to
-- priority, since the indexes have no other order: 1,000 steps at most; of parked rows it sees the first 1,000.
CREATE FUNCTION cluster.oldest_waiting_job(job_table regclass) RETURNS bigint LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    key text := (SELECT t.concurrency_key FROM cluster.job_types t WHERE t.job_table::oid = oldest_waiting_job.job_table::oid);
    found bigint;
BEGIN
    PERFORM cluster.require_job_table(job_table);
    EXECUTE format($query$
WITH RECURSIVE of_default AS (
    (SELECT id, priority, run_at FROM %1$s WHERE status = 'not_started' AND queue = 'default'%2$s ORDER BY priority, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM of_default, LATERAL (
        SELECT id, priority, run_at FROM %1$s
        WHERE status = 'not_started' AND queue = 'default'%2$s AND priority > of_default.priority
        ORDER BY priority, run_at, id LIMIT 1
    ) AS next
), of_others AS (
    (SELECT id, queue, priority, run_at FROM %1$s WHERE status = 'not_started' AND queue <> 'default'%2$s
     ORDER BY queue, priority, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM of_others, LATERAL (
        SELECT id, queue, priority, run_at FROM %1$s
        WHERE status = 'not_started' AND queue <> 'default'%2$s AND (queue, priority) > (of_others.queue, of_others.priority)
        ORDER BY queue, priority, run_at, id LIMIT 1
    ) AS next
)
SELECT id FROM (
    SELECT id, run_at FROM of_default
    UNION ALL
    SELECT id, run_at FROM (SELECT * FROM of_others LIMIT 1000) AS found
    UNION ALL
    (SELECT id, run_at FROM %1$s WHERE status IN ('scheduled', 'retry') ORDER BY run_at LIMIT 1)%3$s
) AS first ORDER BY run_at, id LIMIT 1
$query$,
        job_table,
        CASE WHEN key IS NULL THEN '' ELSE ' AND NOT parked' END,
        CASE WHEN key IS NULL THEN '' ELSE format($query$
    UNION ALL
    SELECT id, run_at FROM (SELECT id, run_at FROM %s WHERE parked ORDER BY %I, priority, run_at, id LIMIT 1000) AS found$query$,
            job_table, key) END) INTO found;
    RETURN found;
END $$;

CREATE FUNCTION cluster.look_at_job(job_table regclass, job_id bigint) RETURNS cluster.waiting_job LANGUAGE plpgsql STABLE AS $$
DECLARE
    kind cluster.job_types;
    job cluster.waiting_job;
BEGIN
    SELECT * INTO kind FROM cluster.job_types t WHERE t.job_table::oid = look_at_job.job_table::oid;
    EXECUTE format('SELECT NULL::regclass, NULL, NULL, NULL, id, queue, priority, run_at, status::text, attempts_count, '
        'cluster.last_line(last_error), schedule, locked_by, started_at, finished_at, cancel_requested_at, %s::text, xmax::text '
        'FROM %s WHERE id = $1', coalesce(quote_ident(kind.concurrency_key), 'NULL'), job_table) INTO job USING job_id;
    job.job_table := job_table;
    job.job_type := kind.name;
    job.limited_to := coalesce(kind.max_concurrency_override, kind.max_concurrency);
    job.concurrency_key := kind.concurrency_key;
    IF job.key IS NOT NULL AND (SELECT col_description(a.attrelid, a.attnum) LIKE '%cluster:secret%' FROM pg_attribute AS a
                                WHERE a.attrelid = job_table::oid AND a.attname = kind.concurrency_key) THEN
        job.key := '******';  -- of letters that every encoding has
    END IF;
    RETURN job;
END $$;

-- It is not there, runs, or has ended. Whoever inserts holds the doorbell of the table until the transaction ends.
CREATE FUNCTION cluster.why_not_waiting(job cluster.waiting_job, job_id bigint)
RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE plpgsql STABLE AS $$
DECLARE
    newest bigint;
BEGIN
    IF job.id IS NULL THEN
        EXECUTE format('SELECT coalesce(max(id), 0) FROM %s', job.job_table) INTO newest;
        RETURN QUERY SELECT 'not_committed', format('There is no job %s to be seen, but %s has inserted here and not committed yet.',
                job_id, cluster.describe_process(l.pid)), 'Nobody sees the job before the COMMIT: end that transaction.'
            FROM pg_locks AS l
            WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND l.classid = 1751 AND l.objid = job.job_table::oid AND l.objsubid = 2 AND l.mode = 'ShareLock' AND l.granted
              AND job_id BETWEEN newest - 100000 AND newest + 100000
            ORDER BY l.pid LIMIT 3;
        RETURN QUERY SELECT 'no_such_job', format('Table %s has no job %s.', job.job_table, job_id),
            'Its INSERT was rolled back, or it was deleted: by hand, or by its retention.';
    ELSIF job.status = 'running' AND EXISTS (
        SELECT FROM cluster.nodes_for(job.job_type, job.queue) AS n WHERE n.id = job.locked_by AND n.state <> 'silent'
    ) THEN
        IF job.cancel_requested_at IS NOT NULL THEN
            RETURN QUERY SELECT 'cancelling', format('It runs on %s, and was told to stop %s ago.', cluster.describe_node(job.locked_by),
                    cluster.in_words(now() - job.cancel_requested_at)), 'A plain perform that does not end is killed with its worker soon.';
        END IF;
        RETURN QUERY SELECT 'running', format('It runs: attempt %s, on %s, for %s.', job.attempts_count,
            cluster.describe_node(job.locked_by), cluster.in_words(now() - job.started_at)), 'Nothing is to be done.';
    ELSIF job.status = 'running' THEN
        RETURN QUERY SELECT 'node_lost', format('It counts as running, on %s.', cluster.describe_node(job.locked_by)),
            'Another node takes it back as soon as the lease is over; if none runs, start one: cluster run.';
    ELSE
        RETURN QUERY SELECT 'finished', format('It has ended: %s, %s ago, in attempt %s%s', replace(job.status, '_', ' '),
                cluster.in_words(now() - job.finished_at), job.attempts_count, coalesce(': ' || job.last_error, '.')),
            format('To run it again: SELECT cluster.retry(%L, %s)', job.job_table, job.id);
    END IF;
END $$;

CREATE FUNCTION cluster.why_not_due(job cluster.waiting_job) RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN job.status = 'retry' THEN 'retry' WHEN job.started_at IS NOT NULL THEN 'snoozed' ELSE 'not_due' END,
           format('It is due in %s, at %s', cluster.in_words(job.run_at - now()), to_char(job.run_at, 'YYYY-MM-DD HH24:MI:SS TZ'))
           || CASE WHEN job.status = 'retry' THEN format(': attempt %s failed%s', job.attempts_count, coalesce(', ' || job.last_error, ''))
                   WHEN job.started_at IS NOT NULL THEN format(': it was snoozed %s ago', cluster.in_words(now() - job.started_at))
                   WHEN job.schedule IS NOT NULL THEN format(': schedule %s has inserted it', job.schedule) ELSE '' END || '.',
           format('To run it now: UPDATE %s SET run_at = now() WHERE id = %s', job.job_table, job.id)
    WHERE job.status IN ('scheduled', 'retry') AND job.run_at > now()
$$;

-- Who paused it: whoever left a line in the audit in the same transaction.
CREATE FUNCTION cluster.why_paused(job cluster.waiting_job) RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE sql STABLE AS $$
    SELECT p.reason, format('%s has been paused for %s%s%s', p.what, cluster.in_words(now() - p.at), coalesce(', by ' || a.who, ''),
                            coalesce(': ' || nullif(p.why, ''), '.')), p.remedy
    FROM (
        SELECT 1 AS place, 'everything_paused' AS reason, 'Everything' AS what, q.paused_at AS at, q.paused_reason AS why,
               'SELECT cluster.resume(), or: cluster resume --all' AS remedy
        FROM cluster.queues AS q WHERE q.name = '*' AND q.paused_at IS NOT NULL
        UNION ALL
        SELECT 2, 'type_paused', 'Job type ' || t.name, t.paused_at, t.paused_reason, 'cluster resume ' || t.name
        FROM cluster.job_types AS t
        WHERE t.job_table::oid = job.job_table::oid AND t.paused_at IS NOT NULL
          AND NOT EXISTS (SELECT FROM cluster.queues AS q WHERE q.name = '*' AND q.paused_at = t.paused_at)
        UNION ALL
        SELECT 3, 'queue_paused', 'Queue ' || q.name, q.paused_at, q.paused_reason, 'cluster resume --queue ' || q.name
        FROM cluster.queues AS q WHERE q.name = job.queue AND q.paused_at IS NOT NULL
    ) AS p LEFT JOIN LATERAL (
        SELECT who FROM cluster.audit WHERE audit.at = p.at AND action = 'pause' ORDER BY id LIMIT 1
    ) AS a ON true
    ORDER BY p.place
$$;

-- No node that lives performs the type in this queue.
CREATE FUNCTION cluster.why_unserved(job cluster.waiting_job) RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE plpgsql STABLE AS $$
DECLARE
    node record;
    queue text := coalesce(job.queue, 'default');
BEGIN
    SELECT count(*) FILTER (WHERE n.state = 'live' AND performs AND serves) AS serving,
           count(*) FILTER (WHERE n.state <> 'silent') AS living, count(*) AS known,
           string_agg(name || told, '; ' ORDER BY name) FILTER (WHERE n.state = 'draining' AND performs AND serves) AS draining,
           string_agg(name || told, '; ' ORDER BY name) FILTER (WHERE n.state = 'silent' AND performs AND serves) AS silent,
           string_agg(name, ', ' ORDER BY name) FILTER (WHERE n.state <> 'silent' AND performs AND NOT serves) AS elsewhere
    INTO node FROM cluster.nodes_for(job.job_type, queue) AS n;
    IF node.serving > 0 THEN
        RETURN;
    END IF;
    IF node.draining IS NOT NULL THEN
        RETURN QUERY SELECT 'nodes_draining', format('All nodes that could have it drain: %s.', left(node.draining, 500)),
            'Start another node, or take it back: cluster undrain NODE';
    END IF;
    IF node.silent IS NOT NULL THEN
        RETURN QUERY SELECT 'nodes_silent', format('%s is silent: %s.', 'The node that could have it', left(node.silent, 500)),
            'It has lost Postgres, or died: look at its machine and its log, or start another.';
    END IF;
    IF node.elsewhere IS NOT NULL THEN
        RETURN QUERY SELECT 'no_node_of_queue', format('No node serves queue %s. %s is performed in other queues, by %s.', queue,
                job.job_type, left(node.elsewhere, 500)),
            format('Start a node with CLUSTER_QUEUES=%s or *, or move the job: UPDATE %s SET queue = ...', queue, job.job_table);
    ELSIF node.draining IS NULL AND node.silent IS NULL AND node.living > 0 THEN
        RETURN QUERY SELECT 'no_node_of_type', format('%s, and none performs %s.',
                CASE node.living WHEN 1 THEN 'One node runs' ELSE node.living || ' nodes run' END, job.job_type),
            format('Deploy the class of table %s to a node; it must be among its CLUSTER_JOBS.', job.job_table);
    ELSIF node.known = 0 THEN
        RETURN QUERY SELECT 'no_node', 'No node is running' || coalesce((
            SELECT format('; the last one, %s, %s %s ago', n.hostname || ':' || n.pid, CASE n.state WHEN 'lost' THEN 'was lost' ELSE 'stopped' END,
                          cluster.in_words(now() - n.heartbeat_at))
            FROM cluster.nodes AS n ORDER BY n.heartbeat_at DESC LIMIT 1), '') || '.', 'Start one: cluster run';
    END IF;
END $$;

-- A lock on the whole table that keeps nodes from changing it.
CREATE FUNCTION cluster.why_table_locked(job_table regclass) RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE sql STABLE AS $$
    SELECT 'table_locked', format('%s has table %s locked (%s).', cluster.describe_process(l.pid), job_table, l.mode),
           format('End that transaction: SELECT pg_terminate_backend(%s)', l.pid)
    FROM pg_locks AS l
    WHERE l.locktype = 'relation' AND l.relation = job_table::oid AND l.granted AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    ORDER BY l.mode, l.pid LIMIT 3
$$;

-- What nodes have told with their heartbeats, which: of this very row ('row'), of the type as a whole ('type'), or of rows that they do not
-- name ('rows').
CREATE FUNCTION cluster.why_set_aside(job cluster.waiting_job, which text)
RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN which = 'row' THEN 'row_set_aside' WHEN which = 'rows' THEN 'rows_set_aside' ELSE t.reason END,
           format('%s, for %s: %s', CASE which
               WHEN 'row' THEN 'Nodes have set this job aside'
               WHEN 'rows' THEN format('Nodes have set aside %s of this type, perhaps this one',
                                       CASE max(t.rows) WHEN 1 THEN 'a job' ELSE max(t.rows) || ' jobs' END)
               ELSE format('Nodes hold %s back (%s)', job.job_type, replace(t.reason, '_', ' ')) END,
               cluster.in_words(make_interval(secs => extract(epoch FROM now())::float8 - min(t.since))), min(t.detail)),
           CASE WHEN t.reason = 'no_privilege' THEN 'Grant it to the role of the nodes; they try again by themselves.'
                WHEN t.reason = 'table_missing' THEN 'The class and the table differ: run cluster migrate, or deploy the class that fits.'
                ELSE 'They try again by themselves, at growing intervals, and go on once that is mended.' END
    FROM cluster.nodes AS n, jsonb_to_recordset(n.trouble) AS t (job_type text, reason text, rows bigint, since float8, detail text)
    WHERE n.state IN ('live', 'draining') AND n.lease_until >= now() AND t.job_type = job.job_type
      AND which = CASE WHEN t.reason NOT IN ('claim_refused', 'promotion_refused') THEN CASE
              WHEN t.rows = 0 AND t.reason IN ('table_missing', 'table_locked', 'table_lock_held', 'too_slow', 'no_privilege', 'query_failed',
                                               'table_refuses_claims', 'table_refuses_outcomes') THEN 'type' END
          WHEN t.detail LIKE format('row %s: %%', job.id) THEN 'row' WHEN t.rows > 0 THEN 'rows' ELSE 'type' END
    GROUP BY t.reason ORDER BY min(t.since)
$$;

-- A unique index that has another row in its way, once this one is what it waits to be.
CREATE FUNCTION cluster.why_another_first(job cluster.waiting_job)
RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE plpgsql STABLE AS $$
DECLARE
    index record;
    other bigint;
BEGIN
    FOR index IN
        SELECT i.indexrelid::regclass AS name, pg_get_expr(i.indpred, i.indrelid) AS condition,
               (SELECT string_agg(pg_get_indexdef(i.indexrelid, n, true), ', ' ORDER BY n) FROM generate_series(1, i.indnkeyatts) AS n) AS columns
        FROM pg_index AS i
        WHERE i.indrelid = job.job_table AND i.indisunique AND i.indisvalid AND pg_get_expr(i.indpred, i.indrelid) LIKE '%status%'
    LOOP
        EXECUTE format($query$
SELECT other.id FROM %1$s AS other WHERE %2$s AND id <> $1 AND (%3$s) = (
    SELECT %3$s FROM jsonb_populate_record((SELECT j FROM %1$s AS j WHERE id = $1), jsonb_build_object('status', $2)) AS me WHERE %2$s
) LIMIT 1$query$, job.job_table, index.condition, index.columns)
            INTO other USING job.id, CASE WHEN job.status = 'not_started' THEN 'running' ELSE 'not_started' END;
        IF other IS NOT NULL THEN
            RETURN QUERY SELECT 'another_first',
                format('Index %s allows one job of these values at a time (%s), and job %s is it.', index.name, index.columns, other),
                format('It goes on after that one. See: SELECT * FROM cluster.why(%L, %s)', job.job_table, other);
        END IF;
    END LOOP;
END $$;

-- The limit of the type, or of the key, is reached; by whom.
CREATE FUNCTION cluster.why_full(job cluster.waiting_job) RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE plpgsql STABLE AS $$
DECLARE
    condition text := CASE WHEN job.concurrency_key IS NULL THEN ''
        ELSE format(' AND %1$I = (SELECT %1$I FROM %2$s WHERE id = $1)', job.concurrency_key, job.job_table) END;
    another text := format('UPDATE cluster.job_types SET max_concurrency_override = ... WHERE name = %L', job.job_type);
    found record;
BEGIN
    IF job.limited_to IS NULL OR (job.concurrency_key IS NOT NULL AND job.key IS NULL AND job.limited_to > 0) THEN
        RETURN;
    ELSIF job.limited_to = 0 THEN
        RETURN QUERY SELECT 'limit_zero', format('The limit of %s is 0, so nothing of it may begin.', job.job_type),
            'To raise it: ' || another;
        RETURN;
    END IF;
    EXECUTE format($query$
SELECT count(*) AS jobs, count(DISTINCT locked_by) AS nodes,
       array_agg(id || ' on ' || cluster.describe_node(locked_by) || ' for ' || cluster.in_words(now() - locked_at)
                 ORDER BY locked_at, id) FILTER (WHERE place <= 3) AS first
FROM (SELECT *, row_number() OVER (ORDER BY locked_at, id) AS place
      FROM (SELECT id, locked_by, locked_at FROM %s WHERE status = 'running'%s LIMIT $2) AS running) AS ranked$query$,
        job.job_table, condition) INTO found USING job.id, job.limited_to;
    IF found.jobs >= job.limited_to THEN
        RETURN QUERY SELECT CASE WHEN job.concurrency_key IS NULL THEN 'limit_full' ELSE 'key_full' END,
            format('The limit of %s%s is reached: %s%s.', cluster.in_words(job.limited_to),
                CASE WHEN job.concurrency_key IS NULL THEN '' ELSE format(' for each %s, here %s,', job.concurrency_key, left(job.key, 100)) END,
                'job ' || array_to_string(found.first, ', job '),
                CASE WHEN found.jobs > 3 THEN format(', and %s more, on %s in all', cluster.in_words(found.jobs - 3),
                     CASE found.nodes WHEN 1 THEN 'one node' ELSE found.nodes || ' nodes' END) ELSE '' END),
            'It begins when one of them ends. To raise the limit: ' || another;
    END IF;
END $$;

-- Another transaction has changed or locked the row and not ended. What only references the row locks it too, and keeps nobody from it.
CREATE FUNCTION cluster.why_row_locked(job cluster.waiting_job) RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE sql STABLE AS $$
    SELECT 'row_locked', format('%s has this row locked.', cluster.describe_process(l.pid)),
           format('Nodes pass over it until that transaction ends: SELECT pg_terminate_backend(%s)', l.pid)
    FROM pg_locks AS l
    WHERE l.locktype = 'transactionid' AND l.transactionid::text = job.locker AND l.mode = 'ExclusiveLock' AND l.granted AND l.pid <> pg_backend_pid()
$$;

-- The slots of each node that may have it, and how many of them are in use. A job that runs in a process of its own takes all slots there: of
-- the types of which that is so, jobs are counted.
CREATE FUNCTION cluster.slots_for(job cluster.waiting_job) RETURNS TABLE (slots bigint, free bigint, width bigint, per_second float8)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    kind record;
    wide jsonb := '{}';
BEGIN
    FOR kind IN
        SELECT t.name, t.job_table, max(w.slots) AS width FROM cluster.nodes AS n, jsonb_to_recordset(n.work) AS w (job_type text, slots bigint)
        JOIN cluster.job_types AS t ON t.name = w.job_type
        WHERE n.state = 'live' AND n.lease_until >= now() AND w.slots > 1 AND has_table_privilege(t.job_table, 'SELECT') GROUP BY t.name, t.job_table
    LOOP
        BEGIN
            EXECUTE format($query$
SELECT $2 || coalesce(jsonb_object_agg(node, slots + coalesce(($2 ->> node)::bigint, 0)), '{}') FROM (
    SELECT locked_by::text AS node, count(*) * ($1 - 1) AS slots FROM (
        SELECT locked_by FROM %s WHERE status = 'running' AND locked_by IS NOT NULL LIMIT 10000) AS found GROUP BY locked_by) AS held$query$,
                kind.job_table) INTO wide USING kind.width, wide;
        EXCEPTION WHEN lock_not_available OR insufficient_privilege OR undefined_table THEN
            CONTINUE;  -- its jobs count one slot each
        END;
    END LOOP;
    RETURN QUERY
        SELECT coalesce(sum(n.slots), 0)::bigint,
               coalesce(sum(greatest(0, n.slots - n.running - coalesce((wide ->> n.id::text)::bigint, 0))), 0)::bigint,
               coalesce(max(w.slots), 1), sum(n.slots / nullif(w.seconds * w.slots, 0))
        FROM cluster.nodes AS n JOIN cluster.nodes_for(job.job_type, job.queue) AS f ON f.id = n.id
        LEFT JOIN LATERAL (SELECT * FROM jsonb_to_recordset(n.work) AS w (job_type text, slots bigint, seconds float8)
                           WHERE w.job_type = job.job_type) AS w ON true
        WHERE f.state = 'live' AND f.performs AND f.serves;
END $$;

-- How many of its own table come before it, at most `bound`, in the queues of the nodes that may have it and that are not paused.
CREATE FUNCTION cluster.count_better(job cluster.waiting_job, bound bigint) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    queues text[] := (SELECT array_agg(DISTINCT queue)
                      FROM cluster.nodes_for(job.job_type, job.queue) AS f JOIN cluster.nodes AS n ON n.id = f.id, unnest(n.queues) AS queue
                      WHERE f.state = 'live' AND f.performs AND f.serves);
    paused text[] := ARRAY(SELECT name FROM cluster.queues WHERE paused_at IS NOT NULL);
    found bigint;
BEGIN
    EXECUTE format($query$
SELECT (SELECT count(*) FROM (
    SELECT FROM %1$s WHERE status = 'not_started' AND queue = 'default'%2$s AND (priority, run_at, id) < ($1, $2, $3)
      AND ('default' = ANY ($4) OR '*' = ANY ($4)) AND 'default' <> ALL ($5) ORDER BY priority, run_at, id LIMIT $6) AS found)
    + (SELECT count(*) FILTER (WHERE queue <> ALL ($5)) FROM (
    SELECT queue FROM %1$s WHERE status = 'not_started' AND (queue < 'default' OR queue > 'default')%2$s AND (priority, run_at, id) < ($1, $2, $3)
      AND '*' = ANY ($4) ORDER BY priority, run_at, id LIMIT $6) AS found)
    + (SELECT coalesce(sum(of_queue.jobs), 0) FROM unnest($4) AS served (name), LATERAL (SELECT count(*) AS jobs FROM (
    SELECT FROM %1$s WHERE status = 'not_started' AND queue <> 'default' AND queue = served.name%2$s AND (priority, run_at, id) < ($1, $2, $3)
      ORDER BY priority, run_at, id LIMIT $6) AS found) AS of_queue
    WHERE '*' <> ALL ($4) AND served.name <> ALL ($5) AND served.name <> 'default')$query$,
        job.job_table, CASE WHEN job.concurrency_key IS NULL THEN '' ELSE ' AND NOT parked' END)
        INTO found USING job.priority, job.run_at, job.id, queues, paused, bound;
    RETURN least(found, bound);
END $$;

-- It is its turn, or not yet: what comes before it, and when there will be a slot.
CREATE FUNCTION cluster.why_not_its_turn(job cluster.waiting_job) RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE plpgsql STABLE AS $$
DECLARE
    room record;
    better bigint;
    pace float8;
    full_text text;
BEGIN
    SELECT * INTO room FROM cluster.slots_for(job);
    better := cluster.count_better(job, 10001);
    pace := CASE WHEN job.concurrency_key IS NULL THEN least(room.per_second, job.limited_to * room.per_second * room.width / nullif(room.slots, 0))
                 ELSE room.per_second END;
    full_text := format('All %s slots that it could have are in use.', cluster.in_words(room.slots));
    IF better > greatest(room.free / room.width, 0) AND better > 0 THEN
        RETURN QUERY SELECT 'behind', format('%s jobs of the type come before it, by priority and time%s.',
                CASE WHEN better > 10000 THEN '10,000+' ELSE cluster.in_words(better) END,
                CASE WHEN pace IS NULL THEN '' ELSE format(', at about %s a second, so it begins in %s%s',
                    CASE WHEN pace >= 10 THEN cluster.in_words(round(pace)::bigint) ELSE round(pace::numeric, 2)::text END,
                    CASE WHEN better > 10000 THEN 'more than ' ELSE 'about ' END, cluster.in_words(make_interval(secs => better / pace))) END),
            'More nodes or a higher limit; a lower number in priority lets it go first.';
    END IF;
    IF room.free < room.width THEN
        RETURN QUERY SELECT 'slots_busy', CASE WHEN room.width = 1 OR room.free = 0 THEN full_text
                ELSE format('It takes the %s slots of a whole worker process, and none of the %s that run is empty.', room.width,
                            room.slots / room.width) END,
            'It begins when a job ends. More nodes, or a higher CLUSTER_PROCESSES or CLUSTER_CONCURRENCY, give more slots.';
    ELSIF better <= room.free / room.width AND now() - job.run_at < interval '5 seconds' THEN
        RETURN QUERY SELECT 'starting', format('Nothing is in its way: it has been ready for %s.', cluster.in_words(now() - job.run_at)),
            'Look again in a moment.';
    ELSIF better <= room.free / room.width THEN
        RETURN QUERY SELECT 'unknown', format('Nothing is in its way that the database knows of, and it has been ready for %s.',
                cluster.in_words(now() - job.run_at)),
            'Look at the log of the nodes that perform it; other types with a better priority go first.';
    END IF;
END $$;

-- What is to come where nothing waits.
CREATE FUNCTION cluster.why_nothing_waits(job cluster.waiting_job) RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY SELECT 'nothing_waits', format('No job of table %s waits.', job.job_table), 'INSERT one; what is inserted is seen at its COMMIT.';
    RETURN QUERY
        SELECT CASE WHEN s.paused_at IS NOT NULL THEN 'schedule_paused' WHEN NOT s.active THEN 'schedule_' || s.state ELSE 'schedule' END,
               CASE WHEN s.paused_at IS NOT NULL THEN format('Schedule %s has been paused for %s%s', s.name,
                        cluster.in_words(now() - s.paused_at), coalesce(': ' || s.paused_reason, '.'))
                    WHEN s.next_run_at IS NULL OR NOT s.active THEN format('Schedule %s is %s%s', s.name, replace(s.state, '_', ' '),
                        coalesce(': ' || cluster.last_line(s.last_error), '.'))
                    ELSE format('Schedule %s inserts one in %s.', s.name, cluster.in_words(s.next_run_at - now())) END,
               'cluster schedule ' || CASE WHEN s.paused_at IS NOT NULL THEN 'resume '
                    WHEN NOT s.active OR s.next_run_at IS NULL THEN 'activate ' ELSE 'run ' END || s.name
        FROM cluster.schedules AS s WHERE s.job_table::oid = job.job_table::oid
        ORDER BY s.active AND s.paused_at IS NULL, s.next_run_at, s.name LIMIT 5;
END $$;

CREATE FUNCTION cluster.reasons_of(job_table regclass, job_id bigint)
RETURNS TABLE (reason text, detail text, remedy text) LANGUAGE plpgsql STABLE AS $$
DECLARE
    job cluster.waiting_job := cluster.look_at_job(job_table, job_id);
    is_ready boolean := job.run_at <= now();
BEGIN
    IF pg_is_in_recovery() THEN
        RETURN QUERY SELECT 'standby', 'This server is a standby: what it knows of nodes may be old, and jobs begin on the primary.',
            'Ask the primary.';
    END IF;
    IF job_id IS NOT NULL AND (job.id IS NULL OR job.status NOT IN ('not_started', 'scheduled', 'retry')) THEN
        RETURN QUERY SELECT r.* FROM cluster.why_not_waiting(job, job_id) AS r;
        RETURN;
    END IF;
    IF job_id IS NULL THEN
        RETURN QUERY SELECT r.* FROM cluster.why_nothing_waits(job) AS r;
    END IF;
    RETURN QUERY SELECT r.* FROM cluster.why_not_due(job) AS r;
    RETURN QUERY SELECT r.* FROM cluster.why_paused(job) AS r;
    RETURN QUERY SELECT r.* FROM cluster.why_unserved(job) AS r;
    RETURN QUERY SELECT r.* FROM cluster.why_table_locked(job_table) AS r;
    IF is_ready THEN
        RETURN QUERY SELECT r.* FROM cluster.why_another_first(job) AS r;
        RETURN QUERY SELECT r.* FROM cluster.why_set_aside(job, 'row') AS r;
    END IF;
    RETURN QUERY SELECT r.* FROM cluster.why_set_aside(job, 'type') AS r;
    RETURN QUERY SELECT r.* FROM cluster.why_full(job) AS r WHERE is_ready OR r.reason = 'limit_zero';
    IF is_ready THEN
        RETURN QUERY SELECT r.* FROM cluster.why_row_locked(job) AS r;
        IF EXISTS (SELECT FROM cluster.nodes_for(job.job_type, job.queue) AS n WHERE n.state = 'live' AND n.performs AND n.serves) THEN
            RETURN QUERY SELECT r.* FROM cluster.why_not_its_turn(job) AS r;
        END IF;
        RETURN QUERY SELECT r.* FROM cluster.why_set_aside(job, 'rows') AS r;
    END IF;
END $$;

-- Why a job does not run, likeliest first. job_id NULL: the one that has waited for longest, or the table in general if none waits.
-- With the rights of whoever asks: SELECT on the job table and on the tables of schema cluster.
CREATE FUNCTION cluster.why(job_table regclass, job_id bigint DEFAULT NULL)
RETURNS TABLE (rank integer, reason text, detail text, remedy text) LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    PERFORM cluster.require_job_table(job_table);
    BEGIN
        RETURN QUERY SELECT row_number() OVER (ORDER BY r.ordinality)::integer, r.reason, r.detail, r.remedy
            FROM cluster.reasons_of(job_table, coalesce(job_id, cluster.oldest_waiting_job(job_table)))
                 WITH ORDINALITY AS r (reason, detail, remedy, ordinality)
            WHERE r.ordinality = 1 OR r.reason NOT IN ('starting', 'unknown');  -- something is in its way, as was found before
    EXCEPTION WHEN lock_not_available THEN
        RETURN QUERY SELECT r.ordinality::integer, r.reason, r.detail, r.remedy
            FROM cluster.why_table_locked(job_table) WITH ORDINALITY AS r (reason, detail, remedy, ordinality);
        IF NOT FOUND THEN
            RETURN QUERY SELECT 1, 'table_locked', format('Table %s was locked a moment ago.', job_table), 'Ask again.';
        END IF;
    END;
END $$;

-- How many slots the jobs of one type in one queue are worth, so that each starts within `start_within` seconds of being ready.
-- waiting, running: jobs. seconds: that one takes. width: slots that one occupies.
-- places: how many may run under a limit; NULL: as many as there is room for. What runs has its slot whatever else is true.
--
-- By Little's law, what runs is the rate of arrival times the time that a job takes, as far as the nodes keep up. Where they do not, jobs
-- wait. In the time t a slot takes 1 + t / seconds jobs, the one that it has included, so those that wait and run need
-- (waiting + running) / (1 + t / seconds) slots. t is half of start_within: it takes a while until a node is there. A seventh more, since
-- autoscalers do not act on a tenth, and long jobs leave no slot soon.
CREATE FUNCTION cluster.wanted_slots(
    waiting float8, running float8, seconds float8, width float8, places float8, start_within float8
) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$
    SELECT width * greatest(running, least(places, 1.15 * (waiting + running) * seconds / (seconds + start_within / 2)))
$$;

-- The least work wants one; what is too much by a rounding error wants no further one.
CREATE FUNCTION cluster.wanted_replicas(slots float8, slots_of_a_node float8) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT ceil(least(slots / slots_of_a_node * 0.999999, 1000000))::integer
$$;

-- What waits and runs in one job table, as a query. Like count_jobs.sql: no count goes beyond $1 in all, or 100 for each of many queues, and
-- what has finished costs nothing. $2: a due row counts that much early. $3: the limit of each key, NULL: there is no key.
-- $4, $5: rows that wait in "default" and in all other queues, as far as the planner knows: beyond the bound they stand for the count.
-- Columns: those of cluster.survey_job_tables. Rows that are parked wait, and nothing could start them, so they are not startable.
CREATE FUNCTION cluster.survey_query(job_table regclass, concurrency_key text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format($query$
WITH RECURSIVE of_default AS (
    (SELECT priority, run_at FROM %1$s WHERE status = 'not_started' AND queue = 'default'%2$s ORDER BY priority, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM of_default, LATERAL (
        SELECT priority, run_at FROM %1$s
        WHERE status = 'not_started' AND queue = 'default'%2$s AND priority > of_default.priority
        ORDER BY priority, run_at, id LIMIT 1
    ) AS next
), of_others AS (
    (SELECT queue, priority, run_at FROM %1$s WHERE status = 'not_started' AND queue <> 'default'%2$s
     ORDER BY queue, priority, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM of_others, LATERAL (
        SELECT queue, priority, run_at FROM %1$s
        WHERE status = 'not_started' AND queue <> 'default'%2$s AND (queue, priority) > (of_others.queue, of_others.priority)
        ORDER BY queue, priority, run_at, id LIMIT 1
    ) AS next
), head AS (
    SELECT 'default' AS queue, min(run_at) AS oldest FROM of_default HAVING count(*) > 0
    UNION ALL
    SELECT queue, min(run_at) FROM (SELECT * FROM of_others LIMIT 1000) AS found GROUP BY queue
), bound AS MATERIALIZED (
    SELECT greatest(100, $1 / greatest(1, count(*))) AS jobs FROM head
), counted AS (
    SELECT head.queue, head.oldest, sum(of_key.jobs)::bigint AS jobs, sum(least(of_key.jobs, $3))::bigint AS startable
    FROM head, LATERAL (
        SELECT count(*) AS jobs FROM (
            SELECT %3$s AS key FROM %1$s WHERE status = 'not_started' AND queue = 'default'%2$s
            ORDER BY priority, run_at, id LIMIT (SELECT jobs FROM bound)
        ) AS found GROUP BY key
    ) AS of_key
    WHERE head.queue = 'default' GROUP BY head.queue, head.oldest
    UNION ALL
    SELECT head.queue, head.oldest, sum(of_key.jobs)::bigint, sum(least(of_key.jobs, $3))::bigint
    FROM head, LATERAL (
        SELECT count(*) AS jobs FROM (
            SELECT %3$s AS key FROM %1$s WHERE status = 'not_started' AND queue <> 'default'%2$s AND queue = head.queue
            ORDER BY queue, priority, run_at, id LIMIT (SELECT jobs FROM bound)
        ) AS found GROUP BY key
    ) AS of_key
    WHERE head.queue <> 'default' GROUP BY head.queue, head.oldest
), full_count AS (
    SELECT count(*) AS queues FROM counted, bound WHERE queue <> 'default' AND counted.jobs >= bound.jobs
), estimated AS (
    SELECT queue, oldest, startable, greatest(counted.jobs, CASE
        WHEN counted.jobs < bound.jobs THEN 0 WHEN queue = 'default' THEN $4 ELSE $5 / full_count.queues END)::bigint AS jobs
    FROM counted, bound, full_count
)
SELECT queue, NULL::uuid, jobs, CASE WHEN $3 IS NULL THEN jobs ELSE startable END, 0::bigint, 0::float8, oldest FROM estimated
UNION ALL
SELECT queue, NULL, count(*) FILTER (WHERE run_at <= now()), count(*), 0, 0, min(run_at) FILTER (WHERE run_at <= now())
FROM (SELECT queue, run_at FROM %1$s WHERE status IN ('scheduled', 'retry') AND run_at <= now() + $2 ORDER BY run_at LIMIT $1) AS found
GROUP BY queue
UNION ALL
SELECT queue, locked_by, 0, 0, count(*), sum(extract(epoch FROM now() - locked_at))::float8, NULL
FROM (SELECT queue, locked_by, locked_at FROM %1$s WHERE status = 'running' ORDER BY locked_by LIMIT $1) AS found
GROUP BY queue, locked_by%4$s
$query$,
        job_table,
        CASE WHEN concurrency_key IS NULL THEN '' ELSE ' AND NOT parked' END,
        CASE WHEN concurrency_key IS NULL THEN 'NULL::integer' ELSE quote_ident(concurrency_key) END,
        CASE WHEN concurrency_key IS NULL THEN '' ELSE format($query$
UNION ALL
SELECT queue, NULL, count(*), 0, 0, 0, min(run_at)
FROM (SELECT queue, run_at FROM %s WHERE parked ORDER BY %I, priority, run_at, id LIMIT $1) AS found GROUP BY queue$query$,
            job_table, concurrency_key) END)
$$;

-- What waits and runs in all job tables, by queue; what runs also by node. startable: those of waiting that could run if there were room, and
-- what will be due within start_within. ages: seconds since the claim of each job that runs, in sum.
-- Runs as its owner, who may read the job tables, and gives away numbers only. A table that can't be read, or is locked for half a second,
-- is left out with a warning. Partial indexes whatever the statistics say, as nodes do it.
CREATE FUNCTION cluster.survey_job_tables(start_within interval)
RETURNS TABLE (
    job_type text, queue text, node uuid, waiting bigint, startable bigint, running bigint, ages float8, oldest timestamptz
) LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    kind record;
BEGIN
    FOR kind IN
        SELECT t.name, t.job_table, t.concurrency_key, planned.of_default, planned.of_others,
               CASE WHEN t.concurrency_key IS NOT NULL THEN coalesce(t.max_concurrency_override, t.max_concurrency) END AS places_of_key
        FROM cluster.job_types t JOIN pg_class r ON r.oid = t.job_table CROSS JOIN LATERAL (
            SELECT coalesce(sum(c.reltuples) FILTER (WHERE rows ~ 'queue = '), 0)::float8 AS of_default,
                   coalesce(sum(c.reltuples) FILTER (WHERE rows ~ 'queue < '), 0)::float8 AS of_others
            FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid CROSS JOIN LATERAL pg_get_expr(i.indpred, i.indrelid) AS rows
            WHERE i.indrelid = t.job_table AND c.reltuples > 0
        ) AS planned
        ORDER BY t.name
    LOOP
        BEGIN
            RETURN QUERY EXECUTE 'SELECT $6, found.* FROM (' || cluster.survey_query(kind.job_table, kind.concurrency_key) || ') AS found'
                USING 10000::bigint, start_within, kind.places_of_key, kind.of_default, kind.of_others, kind.name;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'job table % is left out of cluster.autoscaling: %', kind.job_table, SQLERRM;
        END;
    END LOOP;
END $$;

-- How many nodes are wanted: one row for each queue that has work or nodes, and one, "*", for all of them together. Paused work wants none, nor
-- does a type that no live node performs. cluster.start_within is a setting of the session; without it, 30 seconds.
CREATE VIEW cluster.autoscaling AS
WITH goal AS (
    SELECT greatest(coalesce(nullif(current_setting('cluster.start_within', true), '')::interval, '30 seconds'), '1 second') AS start_within
), node AS MATERIALIZED (
    SELECT id, queues, jobs, slots, running, work, heartbeat_at, state IN ('live', 'draining') AND lease_until >= now() AS is_live
    FROM cluster.nodes
), pace AS MATERIALIZED (  -- of each type; nodes that have ended count where no others know
    SELECT w.job_type, sum(w.slots * known.weight) / sum(known.weight) AS width,
           sum(w.seconds * w.attempts * known.weight) / nullif(sum(w.attempts * known.weight), 0) AS seconds
    FROM node, jsonb_to_recordset(node.work) AS w (job_type text, slots float8, seconds float8, attempts float8),
         LATERAL (SELECT CASE WHEN node.is_live THEN 1 ELSE 0.001 END::float8 AS weight) AS known
    GROUP BY w.job_type
), survey AS MATERIALIZED (
    SELECT s.*, coalesce(pace.width, 1) AS width
    FROM goal CROSS JOIN LATERAL cluster.survey_job_tables(goal.start_within) AS s LEFT JOIN pace USING (job_type)
), part AS (
    -- What a node has claimed ahead waits: it runs no more than it has slots.
    SELECT s.job_type, s.queue, s.waiting, s.startable, s.running, s.ages, s.oldest,
           s.running * coalesce(least(1, node.slots / nullif(sum(s.running * s.width) OVER (PARTITION BY s.node), 0)), 1) AS in_slots
    FROM survey AS s LEFT JOIN node ON node.id = s.node AND node.slots > 0
), item AS (  -- of one type in one queue
    SELECT part.job_type, part.queue, sum(waiting) AS waiting, sum(startable)::float8 AS startable, sum(running) AS running,
           min(oldest) AS oldest, sum(in_slots) AS in_slots, sum(sum(ages)) OVER of_type AS ages,
           sum(sum(running)) OVER of_type AS type_running,
           sum(startable + in_slots) / nullif(sum(sum(startable + in_slots)) OVER of_type, 0) AS share
    FROM part GROUP BY part.job_type, part.queue WINDOW of_type AS (PARTITION BY part.job_type)
), wanted AS (
    SELECT item.queue, item.running, may_begin.*,
           cluster.wanted_slots(
               CASE WHEN may_begin.waiting IS NULL THEN 0 ELSE item.startable END, item.in_slots,
               coalesce(pace.seconds, greatest(1, item.ages / nullif(item.type_running, 0))), coalesce(pace.width, 1),
               CASE WHEN t.concurrency_key IS NULL THEN coalesce(t.max_concurrency_override, t.max_concurrency) * coalesce(item.share, 1) END,
               extract(epoch FROM goal.start_within)::float8
           ) AS slots
    FROM goal, item
    JOIN cluster.job_types AS t ON t.name = item.job_type
    LEFT JOIN pace ON pace.job_type = item.job_type
    LEFT JOIN LATERAL (
        SELECT item.waiting, item.oldest
        WHERE t.paused_at IS NULL
          AND NOT EXISTS (SELECT FROM cluster.queues q WHERE q.name = item.queue AND q.paused_at IS NOT NULL)
          AND (EXISTS (SELECT FROM node WHERE is_live AND t.name = ANY (jobs)) OR NOT EXISTS (SELECT FROM node WHERE is_live))
    ) AS may_begin ON true
), size AS (  -- of a node of each queue
    SELECT DISTINCT ON (queue) queue, slots FROM node, unnest(queues) AS queue WHERE slots > 0
    ORDER BY queue, is_live DESC, CASE WHEN is_live THEN slots END DESC, heartbeat_at DESC
), schedule AS (  -- that a node has to look at soon: in the queue of its jobs, which is the column's default unless the schedule says
    SELECT coalesce(found.job_values ->> 'queue', substring(pg_get_expr(d.adbin, d.adrelid) FROM $q$^'(.*)'::text$q$), 'default') AS queue,
           count(*) AS due
    FROM (SELECT s.job_table, s.job_values FROM cluster.schedules AS s, goal WHERE s.wake_at <= now() + goal.start_within
          ORDER BY s.wake_at LIMIT 10000) AS found
    LEFT JOIN pg_attribute AS a ON a.attrelid = found.job_table AND a.attname = 'queue'
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    GROUP BY 1
), set_of_nodes AS (
    SELECT '*' AS queue UNION SELECT queue FROM size UNION SELECT queue FROM wanted UNION SELECT queue FROM schedule
)
SELECT s.queue,
       cluster.wanted_replicas(
           greatest(coalesce(sum(w.slots), 0), (
               SELECT coalesce(sum(least(running, slots)), 0) FROM node WHERE is_live AND (s.queue = '*' OR queues = ARRAY[s.queue])
           ), CASE WHEN EXISTS (SELECT FROM schedule WHERE s.queue IN (schedule.queue, '*')) THEN 1 ELSE 0 END),
           coalesce(
               (SELECT slots FROM size WHERE size.queue = s.queue), (SELECT slots FROM size WHERE size.queue = '*'),
               (SELECT max(slots) FROM size), 16
           )
       ) AS replicas,
       coalesce(sum(w.waiting), 0)::bigint AS waiting, coalesce(sum(w.running), 0)::bigint AS running,
       (SELECT coalesce(sum(due), 0)::integer FROM schedule WHERE s.queue IN (schedule.queue, '*')) AS due_schedules,
       now() - min(w.oldest) AS oldest_age
FROM set_of_nodes AS s LEFT JOIN wanted AS w ON s.queue IN (w.queue, '*')
GROUP BY s.queue;
COMMENT ON VIEW cluster.autoscaling IS 'How many nodes are wanted, by queue; * is all queues together. Needs SELECT, and EXECUTE on cluster.survey_job_tables.';

-- What each node has performed, a row for each minute and job type in which there was something.
CREATE TABLE cluster.minutes (
    minute    timestamptz NOT NULL,
    job_table regclass NOT NULL,
    node      uuid NOT NULL,
    succeeded bigint NOT NULL,
    failed    bigint NOT NULL,
    seconds   float8 NOT NULL,
    waited    bigint[] NOT NULL,
    PRIMARY KEY (minute, job_table, node)
);
COMMENT ON TABLE cluster.minutes IS 'What a node performed of a job type in a minute, kept for a day. succeeded, failed: attempts; seconds: that they ran, in sum.';
COMMENT ON COLUMN cluster.minutes.waited IS 'Attempts by the seconds from due to begun, in the buckets of cluster_job_wait_seconds; empty ones at the end are left out.';

-- Failed attempts. A row is written by the statement that writes the outcome, and swept when its job is gone: no foreign key and no trigger, so
-- that a success costs nothing. The indexes: of a job, in order; of a group of errors; of a time.
CREATE TABLE cluster.failures (
    job_table   regclass NOT NULL,
    job_id      bigint NOT NULL,
    attempt     integer NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    node        uuid,
    outcome     text NOT NULL,
    fingerprint text NOT NULL,
    error       text,
    PRIMARY KEY (job_table, job_id, at, attempt)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX failures_group ON cluster.failures (fingerprint, at) INCLUDE (job_table, job_id);
CREATE INDEX failures_at ON cluster.failures (at) INCLUDE (fingerprint);
COMMENT ON TABLE cluster.failures IS 'One row per failed attempt, for as long as its job is there. Nodes write it; see docs/sql.md.';

-- Writes failed attempts, arrays of equal length. Whatever is wrong with that costs no outcome: no privilege, a lock, a full disk. Then the rows
-- are missing, which the server's log says. Returns how many were written. Called once per statement, since each call is a subtransaction.
CREATE FUNCTION cluster.note_failures(
    job_table oid, ids bigint[], attempts integer[], nodes uuid[], outcomes text[], fingerprints text[], errors text[]
) RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    written integer;
BEGIN
    INSERT INTO cluster.failures (job_table, job_id, attempt, node, outcome, fingerprint, error)
    SELECT note_failures.job_table, f.* FROM unnest(ids, attempts, nodes, outcomes, fingerprints, errors) AS f
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS written = ROW_COUNT;
    RETURN written;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'failed attempts of % are missing in cluster.failures: %', note_failures.job_table::regclass, SQLERRM;
    RETURN 0;
END $$;

REVOKE ALL ON FUNCTION cluster.survey_job_tables(interval) FROM PUBLIC;

GRANT USAGE ON SCHEMA cluster TO PUBLIC;
GRANT SELECT ON cluster.job_types TO PUBLIC;
