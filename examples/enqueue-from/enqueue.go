// Go with github.com/lib/pq: go run enqueue.go
package main

import (
	"database/sql"
	"errors"
	"fmt"
	"log"

	"github.com/lib/pq"
)

var errNoStock = errors.New("no stock")

func enqueue(db *sql.DB) error {
	// Now. RETURNING id needs SELECT on that column.
	var id int64
	err := db.QueryRow("INSERT INTO email_customers_jobs (customer_id) VALUES ($1) RETURNING id", 1).Scan(&id)
	if err != nil {
		return err
	}
	fmt.Println("enqueued", id)

	// Tomorrow, by the database's clock.
	_, err = db.Exec(`INSERT INTO email_customers_jobs (customer_id, run_at, queue, priority)
		VALUES ($1, now() + interval '1 day', $2, $3)`, 2, "bulk", 90)
	if err != nil {
		return err
	}

	// Many, in one statement.
	_, err = db.Exec("INSERT INTO email_customers_jobs (customer_id) SELECT unnest($1::integer[])", pq.Array([]int{1, 2, 3}))
	return err
}

// With the customer, or not at all.
func signUp(db *sql.DB) error {
	transaction, err := db.Begin()
	if err != nil {
		return err
	}
	defer transaction.Rollback() // nothing, after a Commit
	if _, err := transaction.Exec("INSERT INTO customers (id) VALUES ($1)", 4); err != nil {
		return err
	}
	if _, err := transaction.Exec("INSERT INTO email_customers_jobs (customer_id) VALUES ($1)", 4); err != nil {
		return err
	}
	return errNoStock
}

func main() {
	db, err := sql.Open("postgres", "sslmode=disable") // PGHOST, PGUSER, PGDATABASE …
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	if err := enqueue(db); err != nil {
		log.Fatal(err)
	}
	if err := signUp(db); err != errNoStock {
		log.Fatal(err)
	}
}
