# Ruby: gem install pg; ruby enqueue.rb
require 'pg'

connection = PG.connect # PGHOST, PGUSER, PGDATABASE …

# Now. RETURNING id needs SELECT on that column.
result = connection.exec_params('INSERT INTO email_customers_jobs (customer_id) VALUES ($1) RETURNING id', [1])
puts "enqueued #{result[0]['id']}"

# Tomorrow, by the database's clock.
connection.exec_params(<<~SQL, [2, 'bulk', 90])
  INSERT INTO email_customers_jobs (customer_id, run_at, queue, priority)
  VALUES ($1, now() + interval '1 day', $2, $3)
SQL

# Many, in one statement.
customers = PG::TextEncoder::Array.new.encode([1, 2, 3])
connection.exec_params('INSERT INTO email_customers_jobs (customer_id) SELECT unnest($1::integer[])', [customers])

# With the customer, or not at all.
begin
  connection.transaction do |transaction|
    transaction.exec_params('INSERT INTO customers (id) VALUES ($1)', [4])
    transaction.exec_params('INSERT INTO email_customers_jobs (customer_id) VALUES ($1)', [4])
    raise IndexError, 'no stock'
  end
rescue IndexError
  # rolled back
end
