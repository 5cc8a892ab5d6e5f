"""A shop with jobs of every kind, for the screenshots of the docs and for tests of how pages look."""

# ruff: noqa: E501 - rows as one would type them

from __future__ import annotations

import psycopg

from cluster.fingerprint import fingerprint
from tests.support.rows import run

TABLES = """
CREATE TABLE customers (id integer PRIMARY KEY, name text NOT NULL);
INSERT INTO customers SELECT n, 'Customer ' || n FROM generate_series(1, 200) n;
SELECT cluster.create_job_table(name) FROM unnest(ARRAY[
    'email_customers_jobs', 'resize_image_jobs', 'report_jobs', 'check_stock_jobs']) AS name;
UPDATE cluster.job_types SET name = initcap(replace(replace(job_table::text, '_jobs', '_job'), '_', ' '));
UPDATE cluster.job_types SET name = replace(name, ' ', ''), max_attempts = 5;
UPDATE cluster.job_types SET max_concurrency = 4 WHERE name = 'ResizeImageJob';
ALTER TABLE email_customers_jobs ADD COLUMN customer_id integer REFERENCES customers, ADD COLUMN subject text;
ALTER TABLE resize_image_jobs ADD COLUMN path text, ADD COLUMN width integer NOT NULL DEFAULT 640 CHECK (width < 10000);
CREATE TYPE report_kind AS ENUM ('daily', 'weekly', 'yearly');
ALTER TABLE report_jobs ADD COLUMN kind report_kind NOT NULL DEFAULT 'daily', ADD COLUMN options jsonb;
"""
"""With no job."""

LONG = "الإصدار-" + "a_name_that_nobody_would_choose_but_somebody_has_" * 2
TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/jobs/mail.py", line 42, in perform
    await self.server.send(address, self.subject)
  File "/srv/shop/mail/server.py", line 117, in send
    raise MailServerError(f"421 {host}: too many connections from {address}, try again later")
shop.mail.MailServerError: 421 mx3.example.org: too many connections from 192.0.2.%s, try again later"""

MAIL_ERROR = TRACEBACK % 7
LOOKUP_ERROR = f"""{MAIL_ERROR}

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/shop/jobs/mail.py", line 44, in perform
    raise
LookupError: no customer 7"""

FEW = f"""
INSERT INTO email_customers_jobs (customer_id, subject) VALUES (1, 'Your order'), (2, 'تم شحن طلبك'), (3, '{LONG}');
"""
"""Three."""

MANY = """
SET session_replication_role = replica;
INSERT INTO email_customers_jobs (customer_id, subject, status, attempts_count, last_error, created_at, run_at, started_at, finished_at)
SELECT 1 + n %% 200, (ARRAY['Your order', 'Welcome', 'Invoice', 'تم شحن طلبك'])[1 + n %% 4], CASE
         WHEN n > 1180 THEN 'not_started' WHEN n > 1150 THEN 'retry' WHEN n %% 4 = 0 THEN 'failed' ELSE 'succeeded' END::cluster.job_status,
       CASE WHEN n > 1180 THEN 0 ELSE 1 + n %% 3 END,
       CASE WHEN n <= 1180 AND (n > 1150 OR n %% 4 = 0) THEN CASE WHEN n %% 44 = 0 THEN
         format(%(traceback)s, 7) || E'\\n\\nDuring handling of the above exception, another exception occurred:\\n\\n'
         || E'Traceback (most recent call last):\\n  File "/srv/shop/jobs/mail.py", line 44, in perform\\n    raise\\n'
         || 'LookupError: no customer ' || n ELSE format(%(traceback)s, n %% 250) END END,
       now() - (1200 - n) * interval '3 seconds', now() - (1200 - n) * interval '3 seconds',
       CASE WHEN n <= 1180 THEN now() - (1200 - n) * interval '3 seconds' END,
       CASE WHEN n <= 1150 THEN now() - (1200 - n) * interval '3 seconds' + interval '840 ms' END
FROM generate_series(1, 1200) n;
INSERT INTO resize_image_jobs (path, status, attempts_count, started_at, finished_at, locked_by, locked_at)
SELECT '/uploads/2026/11/' || n || '.jpg', CASE WHEN n > 440 THEN 'not_started' WHEN n > 436 THEN 'running' ELSE 'succeeded' END::cluster.job_status,
       CASE WHEN n > 440 THEN 0 ELSE 1 END, CASE WHEN n <= 440 THEN now() - interval '4 s' END,
       CASE WHEN n <= 436 THEN now() - interval '2 s' END,
       CASE WHEN n BETWEEN 437 AND 440 THEN '00000000-0000-0000-0000-000000000001'::uuid END, CASE WHEN n BETWEEN 437 AND 440 THEN now() END
FROM generate_series(1, 455) n;
INSERT INTO report_jobs (kind, options, status, attempts_count, started_at, finished_at)
SELECT 'daily', '{"pages": [1, 2, 3]}', 'succeeded', 1, now() - interval '1 h', now() - interval '50 min' FROM generate_series(1, 30);
INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, heartbeat_at, lease_until, slots, running, code, started_at) VALUES
('00000000-0000-0000-0000-000000000001', 'shop-1', 411, '0.1.0', '{*}', '{EmailCustomersJob,ResizeImageJob,ReportJob,CheckStockJob}', now() - interval '2 s', now() + interval '1 day', 16, 4, 'b7', now() - interval '22 min'),
('00000000-0000-0000-0000-000000000002', 'shop-2', 398, '0.1.0', '{*}', '{EmailCustomersJob,ResizeImageJob,ReportJob,CheckStockJob}', now() - interval '4 s', now() + interval '1 day', 16, 0, 'b7', now() - interval '21 min'),
('00000000-0000-0000-0000-000000000003', 'shop-3', 402, '0.1.0', '{email,default}', '{EmailCustomersJob}', now() - interval '72 s', now() - interval '42 s', 16, 0, 'a3', now() - interval '3 days');
INSERT INTO cluster.audit (at, who, via, action, target, filter, count)
SELECT now() - n * interval '11 minutes', (ARRAY['ann', 'bob'])[1 + n %% 2], 'dashboard',
       (ARRAY['retry', 'pause', 'cancel', 'limit'])[1 + n %% 4], 'EmailCustomersJob', '{"status": ["failed"]}', n * 7
FROM generate_series(1, 12) n;
INSERT INTO cluster.failures (job_table, job_id, attempt, at, node, outcome, fingerprint, error)
SELECT 'email_customers_jobs'::regclass, id, attempt, started_at - (attempts_count - attempt) * interval '2 s', '00000000-0000-0000-0000-000000000002',
       CASE WHEN attempt = attempts_count AND status = 'failed' THEN 'failed' ELSE 'retry' END,
       CASE WHEN last_error LIKE '%%LookupError%%' THEN %(lookup)s ELSE %(mail)s END, last_error
FROM email_customers_jobs, generate_series(1, attempts_count) AS attempt WHERE last_error <> '';
INSERT INTO cluster.minutes (minute, job_table, node, succeeded, failed, seconds, waited)
SELECT date_trunc('minute', now()) - n * interval '1 minute', name::regclass, '00000000-0000-0000-0000-000000000002',
       round(40 + 25 * sin(n / 7.0) + n %% 5), CASE WHEN n < 20 AND name LIKE 'email%' THEN 12 + n %% 4 ELSE 0 END, 30 + n %% 7,
       ARRAY[0, 3, 20, 30 - n %% 9, 5, CASE WHEN n < 20 THEN 14 ELSE 2 END]
FROM generate_series(1, 59) AS n, unnest(ARRAY['email_customers_jobs', 'resize_image_jobs']) AS name;
SET session_replication_role = origin;
SELECT cluster.pause('newsletter', 'mail server moves until 18:00');
"""
"""An incident."""

SCHEDULES = f"""
INSERT INTO cluster.schedules (name, job_table, job_values, cron, every, time_zone, expect_within, overlap, source, run_once) VALUES
('stock', 'check_stock_jobs', '{{}}', NULL, '2 minutes', 'UTC', '10 minutes', 'skip', 'user', false),
('ReportJob.daily', 'report_jobs', '{{"kind": "daily", "priority": 10}}', '0 5 * * *', NULL, 'Europe/Berlin', '1 hour', 'skip', 'code', false),
('ReportJob.yearly', 'report_jobs', '{{"kind": "yearly"}}', '@yearly', NULL, 'UTC', NULL, 'skip', 'code', false),
('newsletter', 'email_customers_jobs', '{{"subject": "News of the week"}}', '30 9 * * MON-FRI', NULL, 'Asia/Tokyo', NULL, 'queue_one', 'user', false),
('thumbnails', 'resize_image_jobs', '{{"path": "/uploads"}}', 'H 3 * * *', NULL, 'UTC', '2 hours', 'skip', 'user', false),
('warm the caches', 'check_stock_jobs', '{{}}', NULL, '30 seconds', 'UTC', NULL, 'skip', 'user', true),
('stocktaking', 'check_stock_jobs', '{{}}', '0 0 1 * *', NULL, 'UTC', NULL, 'skip', 'user', false),
('{LONG}', 'check_stock_jobs', '{{}}', '*/17 2,5,11 1,8,15,22 JAN-JUN,OCT MON-FRI', NULL, 'America/Argentina/ComodRivadavia', NULL, 'skip', 'user', false);
UPDATE cluster.schedules SET paused_at = now() - interval '3 hours', paused_reason = 'the mail server moves' WHERE name = 'newsletter';
UPDATE cluster.schedules SET state = 'deactivated', last_outcome = 'failed', last_error = format(%(traceback)s, 7), last_run_at = now() - interval '5 h'
    WHERE name = 'thumbnails';
UPDATE cluster.schedules SET state = 'stopped', last_outcome = 'STOP', last_run_at = now() - interval '2 days' WHERE name = 'stocktaking';
UPDATE cluster.schedules SET last_outcome = 'succeeded', last_run_at = now() - interval '40 seconds', missed = 3,
    overdue_since = now() - interval '20 minutes' WHERE name = 'stock';
UPDATE cluster.schedules SET last_outcome = 'succeeded', last_run_at = now() - interval '9 hours' WHERE name LIKE 'ReportJob%%';
INSERT INTO cluster.schedule_runs (name, due_at, job_id, job_table, fired_at, started_at, finished_at, outcome)
SELECT 'stock', due, CASE WHEN n %% 9 <> 4 THEN n END, 'check_stock_jobs', due, CASE WHEN n %% 9 <> 4 THEN due + interval '3 ms' END,
       due + interval '1 second' * (3 + 2 * sin(n) + n %% 5),
       CASE n %% 9 WHEN 4 THEN 'skipped' WHEN 7 THEN CASE WHEN n < 20 THEN 'failed' ELSE 'succeeded' END ELSE 'succeeded' END
FROM generate_series(1, 70) n, LATERAL (SELECT date_trunc('minute', now()) - n * interval '2 minutes' AS due) AS at;
"""


def shop(conn: psycopg.Connection, how_much: str = "many") -> None:
    """how_much: none, few or many jobs."""
    run(conn, TABLES)
    if how_much == "few":
        run(conn, FEW)
    if how_much == "many":
        _fill(conn, MANY)
        _fill(conn, SCHEDULES)


def _fill(conn: psycopg.Connection, text: str) -> None:
    values = {
        "traceback": TRACEBACK,
        "mail": fingerprint("failed", MAIL_ERROR),
        "lookup": fingerprint("failed", LOOKUP_ERROR),
    }
    for name, value in values.items():
        text = text.replace(f"%({name})s", psycopg.sql.Literal(value).as_string(conn))
    run(conn, text.replace("%%", "%"))
