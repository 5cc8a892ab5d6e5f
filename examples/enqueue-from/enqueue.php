<?php
// PHP with its pgsql extension: php enqueue.php
$connection = pg_connect('') or exit(1); // PGHOST, PGUSER, PGDATABASE …

function run(string $statement, array $values = []): PgSql\Result
{
    global $connection;
    return pg_query_params($connection, $statement, $values) ?: throw new RuntimeException(pg_last_error($connection));
}

// Now. RETURNING id needs SELECT on that column.
$result = run('INSERT INTO email_customers_jobs (customer_id) VALUES ($1) RETURNING id', [1]);
echo 'enqueued ', pg_fetch_result($result, 0, 'id'), "\n";

// Tomorrow, by the database's clock.
run(
    "INSERT INTO email_customers_jobs (customer_id, run_at, queue, priority) VALUES (\$1, now() + interval '1 day', \$2, \$3)",
    [2, 'bulk', 90],
);

// Many, in one statement.
run('INSERT INTO email_customers_jobs (customer_id) SELECT unnest($1::integer[])', ['{' . implode(',', [1, 2, 3]) . '}']);

// With the customer, or not at all.
run('BEGIN');
try {
    run('INSERT INTO customers (id) VALUES ($1)', [4]);
    run('INSERT INTO email_customers_jobs (customer_id) VALUES ($1)', [4]);
    throw new DomainException('no stock');
} catch (DomainException) {
    run('ROLLBACK');
}
