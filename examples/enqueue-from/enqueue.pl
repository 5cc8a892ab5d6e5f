# Perl with DBD::Pg: perl enqueue.pl
use strict;
use warnings;
use DBI;

my $connection = DBI->connect('dbi:Pg:', undef, undef, { RaiseError => 1, PrintError => 0 });    # PGHOST, PGUSER, PGDATABASE ...

# Now. RETURNING id needs SELECT on that column.
my ($id) = $connection->selectrow_array(
    'INSERT INTO email_customers_jobs (customer_id) VALUES (?) RETURNING id', undef, 1);
print "enqueued $id\n";

# Tomorrow, by the database's clock.
$connection->do(
    q{INSERT INTO email_customers_jobs (customer_id, run_at, queue, priority)
      VALUES (?, now() + interval '1 day', ?, ?)}, undef, 2, 'bulk', 90);

# Many, in one statement.
$connection->do('INSERT INTO email_customers_jobs (customer_id) SELECT unnest(?::integer[])', undef, [ 1, 2, 3 ]);

# With the customer, or not at all.
eval {
    $connection->begin_work;
    $connection->do('INSERT INTO customers (id) VALUES (?)', undef, 4);
    $connection->do('INSERT INTO email_customers_jobs (customer_id) VALUES (?)', undef, 4);
    die "no stock\n";
} or do {
    $connection->rollback;
    die $@ unless $@ eq "no stock\n";
};
$connection->disconnect;
