-- psql -v ON_ERROR_STOP=1 -qAt -f enqueue.sql

-- Now. RETURNING id needs SELECT on that column.
INSERT INTO email_customers_jobs (customer_id) VALUES (1) RETURNING 'enqueued ' || id;

-- Tomorrow, by the database's clock.
INSERT INTO email_customers_jobs (customer_id, run_at, queue, priority)
VALUES (2, now() + interval '1 day', 'bulk', 90);

-- Many, in one statement.
INSERT INTO email_customers_jobs (customer_id) VALUES (1), (2), (3);

-- With the customer, or not at all.
BEGIN;
INSERT INTO customers (id) VALUES (4);
INSERT INTO email_customers_jobs (customer_id) VALUES (4);
ROLLBACK;
