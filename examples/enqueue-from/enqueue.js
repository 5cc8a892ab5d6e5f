// Node.js: npm install pg; node enqueue.js
const { Client } = require('pg')

async function main () {
  const client = new Client() // PGHOST, PGUSER, PGDATABASE …
  await client.connect()

  // Now. RETURNING id needs SELECT on that column.
  const { rows } = await client.query('INSERT INTO email_customers_jobs (customer_id) VALUES ($1) RETURNING id', [1])
  console.log(`enqueued ${rows[0].id}`) // a string: pg gives a bigint as one

  // Tomorrow, by the database's clock.
  await client.query(
    "INSERT INTO email_customers_jobs (customer_id, run_at, queue, priority) VALUES ($1, now() + interval '1 day', $2, $3)",
    [2, 'bulk', 90]
  )

  // Many, in one statement.
  await client.query('INSERT INTO email_customers_jobs (customer_id) SELECT unnest($1::integer[])', [[1, 2, 3]])

  // With the customer, or not at all.
  await client.query('BEGIN')
  try {
    await client.query('INSERT INTO customers (id) VALUES ($1)', [4])
    await client.query('INSERT INTO email_customers_jobs (customer_id) VALUES ($1)', [4])
    throw new Error('no stock')
  } catch {
    await client.query('ROLLBACK')
  }
  await client.end()
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
